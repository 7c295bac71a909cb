// Makes a picture: go run . "a red circle" [seed] [file]
// DARKROOM_ADDRESS is the server's address, DARKROOM_TOKEN the token where it wants one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	darkroom "example/darkroom/v1"
)

func main() {
	// Ctrl-C ends the call, and with it the job, within a step.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		explain(err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	prompt, file := argument(1, "a red circle on a blue background"), argument(3, "picture.png")
	seed, err := strconv.ParseInt(argument(2, "7"), 10, 64) // an int64: strconv.Atoi is too small on 32 bits
	if err != nil {
		return err
	}
	// Options and extensions are a google.protobuf.Struct.
	options, err := structpb.NewStruct(map[string]interface{}{"solver_order": 3})
	if err != nil {
		return err
	}
	// Without TLS. With it: grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(nil, "")).
	connection, err := grpc.Dial(environment("DARKROOM_ADDRESS", "127.0.0.1:50051"), grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	if token := os.Getenv("DARKROOM_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := darkroom.NewImageServiceClient(connection).Generate(ctx, &darkroom.GenerateRequest{
		Parameters: &darkroom.Parameters{
			Prompt:    prompt,
			Seed:      &seed,
			Scheduler: &darkroom.SchedulerSpec{Name: "dpmpp-2m", Options: options},
		},
	})
	if err != nil {
		return err
	}
	picture, err := read(stream)
	if err != nil {
		return err
	}
	fmt.Printf("wrote %s: %d bytes\n", file, len(picture))
	return os.WriteFile(file, picture, 0o644)
}

// read follows the events of one picture to the end of the stream.
func read(stream darkroom.ImageService_GenerateClient) ([]byte, error) {
	var picture []byte
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) { // the stream ended with OK: the picture is whole
			return picture, nil
		} else if err != nil {
			return nil, err
		}
		switch event := response.Event.Event.(type) {
		case *darkroom.JobEvent_Step:
			fmt.Printf("step %d of %d\n", event.Step.Step, event.Step.StepCount)
		case *darkroom.JobEvent_Image:
			picture = event.Image.ImageBytes                                     // of a large one the beginning
			recipe := event.Image.Metadata.Fields["parameters"].GetStructValue() // numbers are doubles
			fmt.Printf("seed %d, %v steps\n", event.Image.Seed, recipe.Fields["num_inference_steps"].GetNumberValue())
		case *darkroom.JobEvent_Chunk: // the rest of it, in order
			picture = append(picture, event.Chunk.Data...)
		}
	}
}

// explain prints an error with the details that every error of the server has.
func explain(err error) {
	fmt.Fprintln(os.Stderr, err)
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Fprintln(os.Stderr, "reason:", detail.Reason)
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				fmt.Fprintln(os.Stderr, violation.Field, violation.Description)
			}
		case *errdetails.RetryInfo:
			fmt.Fprintln(os.Stderr, "try again in", detail.RetryDelay.AsDuration())
		}
	}
}

func argument(index int, otherwise string) string {
	if len(os.Args) > index {
		return os.Args[index]
	}
	return otherwise
}

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
