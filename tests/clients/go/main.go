// Creates a location and lists it: main ADDRESS TOKEN SERVICE_CONFIG.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	v1 "location-service.internal/location/v1"
)

func main() {
	address, token := os.Args[1], os.Args[2]
	config, err := os.ReadFile(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure(),
		grpc.WithDefaultServiceConfig(string(config)))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := v1.NewLocationServiceClient(connection)
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token)
	created, err := client.CreateLocation(ctx, &v1.CreateLocationRequest{
		Location: &v1.Location{
			Type:            v1.LocationType_LOCATION_TYPE_STORAGE,
			DisplayName:     "Quai 7",
			ProductionRunId: "go",
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	run := "go"
	list, err := client.ListLocations(ctx, &v1.ListLocationsRequest{ProductionRunId: &run})
	if err != nil {
		log.Fatal(err)
	}
	if len(list.Locations) != 1 || list.Locations[0].Etag != created.Etag {
		log.Fatal(list)
	}
	fmt.Println("Go: created and listed", list.Locations[0].DisplayName)
}
