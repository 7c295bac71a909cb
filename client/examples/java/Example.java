// Makes a picture: java Example "a red circle" [seed] [file]
// DARKROOM_ADDRESS is the server's address, DARKROOM_TOKEN the token where it wants one.
import com.google.protobuf.Any;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import darkroom.v1.GenerateRequest;
import darkroom.v1.GenerateResponse;
import darkroom.v1.ImageEvent;
import darkroom.v1.ImageServiceGrpc;
import darkroom.v1.JobEvent;
import darkroom.v1.Parameters;
import darkroom.v1.SchedulerSpec;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;

public final class Example {
    public static void main(String[] arguments) throws IOException {
        String prompt = arguments.length > 0 ? arguments[0] : "a red circle on a blue background";
        long seed = arguments.length > 1 ? Long.parseLong(arguments[1]) : 7; // an int64: int is too small
        Path file = Path.of(arguments.length > 2 ? arguments[2] : "picture.png");

        // Options and extensions are a google.protobuf.Struct.
        Value order = Value.newBuilder().setNumberValue(3).build();
        Struct options = Struct.newBuilder().putFields("solver_order", order).build();
        SchedulerSpec scheduler = SchedulerSpec.newBuilder().setName("dpmpp-2m").setOptions(options).build();
        Parameters parameters =
                Parameters.newBuilder().setPrompt(prompt).setSeed(seed).setScheduler(scheduler).build();
        GenerateRequest request = GenerateRequest.newBuilder().setParameters(parameters).build();

        String address = System.getenv().getOrDefault("DARKROOM_ADDRESS", "127.0.0.1:50051");
        ManagedChannel channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build(); // without TLS
        try {
            byte[] picture = read(ImageServiceGrpc.newBlockingStub(channel)
                    .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers()))
                    .generate(request));
            Files.write(file, picture);
            System.out.printf("wrote %s: %d bytes%n", file, picture.length);
        } catch (StatusRuntimeException error) {
            explain(error);
            System.exit(1);
        } finally {
            channel.shutdownNow(); // an open call is cancelled, and its job stops within a step
        }
    }

    /** Follows the events of one picture to the end of the stream. */
    private static byte[] read(Iterator<GenerateResponse> stream) throws IOException {
        ByteArrayOutputStream picture = new ByteArrayOutputStream();
        while (stream.hasNext()) {
            JobEvent event = stream.next().getEvent();
            switch (event.getEventCase()) {
                case STEP:
                    System.out.printf("step %d of %d%n", event.getStep().getStep(), event.getStep().getStepCount());
                    break;
                case IMAGE: // of a large picture the beginning
                    ImageEvent image = event.getImage();
                    picture.write(image.getImageBytes().toByteArray());
                    Struct recipe = image.getMetadata().getFieldsOrThrow("parameters").getStructValue();
                    double steps = recipe.getFieldsOrThrow("num_inference_steps").getNumberValue();
                    System.out.printf("seed %d, %.0f steps%n", image.getSeed(), steps);
                    break;
                case CHUNK: // the rest of it, in order
                    picture.write(event.getChunk().getData().toByteArray());
                    break;
                default: // others may be added to the API: what one does not know, one skips
            }
        }
        return picture.toByteArray(); // the stream ended with OK: the picture is whole
    }

    /** Prints an error with the details that every error of the server has. */
    private static void explain(StatusRuntimeException error) throws IOException {
        System.err.println(error.getMessage());
        com.google.rpc.Status status = StatusProto.fromThrowable(error);
        for (Any detail : status.getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                System.err.println("reason: " + detail.unpack(ErrorInfo.class).getReason());
            } else if (detail.is(BadRequest.class)) {
                detail.unpack(BadRequest.class).getFieldViolationsList().forEach(violation ->
                        System.err.println(violation.getField() + " " + violation.getDescription()));
            } else if (detail.is(RetryInfo.class)) {
                System.err.println("try again in " + detail.unpack(RetryInfo.class).getRetryDelay().getSeconds() + " s");
            }
        }
    }

    private static Metadata headers() {
        Metadata headers = new Metadata();
        String token = System.getenv("DARKROOM_TOKEN");
        if (token != null) {
            headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
        }
        return headers;
    }
}
