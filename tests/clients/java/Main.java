import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import location.v1.CreateLocationRequest;
import location.v1.ListLocationsRequest;
import location.v1.Location;
import location.v1.LocationServiceGrpc;
import location.v1.LocationType;

/** Creates a location and lists it: Main ADDRESS TOKEN. */
public final class Main {
    public static void main(String[] args) {
        ManagedChannel channel = ManagedChannelBuilder.forTarget(args[0]).usePlaintext().build();
        Metadata metadata = new Metadata();
        Metadata.Key<String> authorization =
                Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
        metadata.put(authorization, "Bearer " + args[1]);
        var client =
                MetadataUtils.attachHeaders(LocationServiceGrpc.newBlockingStub(channel), metadata);
        var location =
                Location.newBuilder()
                        .setType(LocationType.LOCATION_TYPE_STORAGE)
                        .setDisplayName("Quai 7")
                        .setProductionRunId("java");
        Location created =
                client.createLocation(
                        CreateLocationRequest.newBuilder().setLocation(location).build());
        var list =
                client.listLocations(
                        ListLocationsRequest.newBuilder().setProductionRunId("java").build());
        if (list.getLocationsCount() != 1 || !list.getLocations(0).equals(created)) {
            throw new AssertionError(list);
        }
        System.out.println("Java: created and listed " + created.getDisplayName());
        channel.shutdownNow();
    }
}
