<?php

// Creates a location and lists it: main.php ADDRESS TOKEN. Debian packages PHP's protobuf
// runtime but not its gRPC extension, so the calls are made with curl.

use LocationApi\V1\CreateLocationRequest;
use LocationApi\V1\ListLocationsRequest;
use LocationApi\V1\ListLocationsResponse;
use LocationApi\V1\Location;
use LocationApi\V1\LocationType;

spl_autoload_register(function (string $class): void {
    $file = stream_resolve_include_path(str_replace('\\', '/', $class) . '.php');
    if ($file !== false) {
        require $file;
    }
});

[, $address, $token] = $argv;

function call(string $method, object $request, object $response): object
{
    global $address, $token;
    $message = $request->serializeToString();
    $status = null;
    $curl = curl_init("http://$address/location.v1.LocationService/$method");
    curl_setopt_array($curl, [
        CURLOPT_HTTP_VERSION => CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE,
        CURLOPT_HTTPHEADER => [
            'content-type: application/grpc', 'te: trailers', "authorization: Bearer $token",
        ],
        CURLOPT_POSTFIELDS => pack('CN', 0, strlen($message)) . $message,
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_HEADERFUNCTION => function ($curl, string $line) use (&$status): int {
            if (str_starts_with($line, 'grpc-status:')) {
                $status = (int) substr($line, strlen('grpc-status:'));
            }
            return strlen($line);
        },
    ]);
    $body = curl_exec($curl);
    if ($body === false || $status !== 0) {
        throw new RuntimeException("$method: status $status " . curl_error($curl));
    }
    $response->mergeFromString(substr($body, 5));
    return $response;
}

$location = new Location([
    'type' => LocationType::LOCATION_TYPE_STORAGE,
    'display_name' => 'Quai 7',
    'production_run_id' => 'php',
]);
$create = new CreateLocationRequest(['location' => $location]);
$created = call('CreateLocation', $create, new Location());
$of_run = new ListLocationsRequest(['production_run_id' => 'php']);
$list = call('ListLocations', $of_run, new ListLocationsResponse())->getLocations();
if (count($list) !== 1 || $list[0]->getEtag() !== $created->getEtag()) {
    throw new RuntimeException(count($list) . ' locations');
}
echo 'PHP: created and listed ', $list[0]->getDisplayName(), "\n";
