// Creates a location and lists it: Main.exe ADDRESS TOKEN. Debian has neither Grpc.Core nor an HttpClient
// for mono with HTTP/2, so the calls are made with curl.

using System;
using System.Diagnostics;
using System.IO;
using Google.Protobuf;
using LocationApi.V1;

internal static class Program
{
    private static string address, token;

    private static void Main(string[] args)
    {
        (address, token) = (args[0], args[1]);
        var location = new Location
        {
            Type = LocationType.Storage,
            DisplayName = "Quai 7",
            ProductionRunId = "csharp",
        };
        var created = Call(
            "CreateLocation", new CreateLocationRequest { Location = location }, Location.Parser);
        var list = Call(
            "ListLocations",
            new ListLocationsRequest { ProductionRunId = "csharp" },
            ListLocationsResponse.Parser);
        if (list.Locations.Count != 1 || !list.Locations[0].Equals(created))
            throw new InvalidOperationException(list.ToString());
        Console.WriteLine("C#: created and listed " + created.DisplayName);
    }

    private static T Call<T>(string method, IMessage request, MessageParser<T> parser)
        where T : IMessage<T>
    {
        var message = request.ToByteArray();
        var frame = new byte[message.Length + 5];
        for (var i = 0; i < 4; i++) frame[4 - i] = (byte)(message.Length >> (8 * i));
        message.CopyTo(frame, 5);
        var headers = Path.GetTempFileName();
        var curl = Process.Start(new ProcessStartInfo("curl",
            $"-sS --http2-prior-knowledge -D {headers} --data-binary @- -H te:trailers " +
            $"-H content-type:application/grpc -H \"authorization: Bearer {token}\" " +
            $"http://{address}/location.v1.LocationService/{method}")
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            UseShellExecute = false,
        });
        curl.StandardInput.BaseStream.Write(frame, 0, frame.Length);
        curl.StandardInput.Close();
        var body = new MemoryStream();
        curl.StandardOutput.BaseStream.CopyTo(body);
        curl.WaitForExit();
        // It has the trailers as well.
        var trailers = File.ReadAllText(headers);
        File.Delete(headers);
        if (!trailers.Contains("grpc-status: 0")) throw new InvalidOperationException(trailers);
        return parser.ParseFrom(body.ToArray(), 5, (int)body.Length - 5);
    }
}
