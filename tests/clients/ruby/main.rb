# Creates a location and lists it: main.rb ADDRESS TOKEN SERVICE_CONFIG.

require "location/v1/location_service_services_pb"

address, token, config = ARGV
V1 = LocationApi::V1
client = V1::LocationService::Stub.new(
  address, :this_channel_is_insecure,
  channel_args: { "grpc.service_config" => File.read(config) }
)
metadata = { "authorization" => "Bearer #{token}" }
location = V1::Location.new(
  type: :LOCATION_TYPE_STORAGE, display_name: "Quai 7", production_run_id: "ruby"
)
created = client.create_location(V1::CreateLocationRequest.new(location: location), metadata: metadata)
list = client.list_locations(
  V1::ListLocationsRequest.new(production_run_id: "ruby"), metadata: metadata
)
raise list.inspect unless list.locations.to_a == [created]

puts "Ruby: created and listed #{created.display_name}"
