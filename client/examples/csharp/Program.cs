// Makes a picture: dotnet run "a red circle" [seed] [file]
// DARKROOM_ADDRESS is the server's address, DARKROOM_TOKEN the token where it wants one.
using System;
using System.IO;
using System.Threading;
using System.Threading.Tasks;
using Darkroom.V1;
using Google.Protobuf.WellKnownTypes;
using Google.Rpc;
using Grpc.Core;
using Grpc.Net.Client;

public static class Program
{
    public static async Task<int> Main(string[] arguments)
    {
        string prompt = arguments.Length > 0 ? arguments[0] : "a red circle on a blue background";
        long seed = arguments.Length > 1 ? long.Parse(arguments[1]) : 7; // an int64: int is too small
        string file = arguments.Length > 2 ? arguments[2] : "picture.png";

        // Options and extensions are a google.protobuf.Struct.
        var options = new Struct { Fields = { ["solver_order"] = Value.ForNumber(3) } };
        var scheduler = new SchedulerSpec { Name = "dpmpp-2m", Options = options };
        var parameters = new Parameters { Prompt = prompt, Seed = seed, Scheduler = scheduler };

        string address = Environment.GetEnvironmentVariable("DARKROOM_ADDRESS") ?? "127.0.0.1:50051";
        using (var stop = new CancellationTokenSource())
        using (var channel = GrpcChannel.ForAddress("http://" + address)) // https: with TLS
        {
            // Ctrl-C ends the call, and with it the job, within a step.
            Console.CancelKeyPress += (sender, pressed) => { pressed.Cancel = true; stop.Cancel(); };
            try
            {
                var client = new ImageService.ImageServiceClient(channel);
                var request = new GenerateRequest { Parameters = parameters };
                using (var call = client.Generate(request, Headers(), cancellationToken: stop.Token))
                {
                    byte[] picture = await Read(call.ResponseStream, stop.Token);
                    File.WriteAllBytes(file, picture);
                    Console.WriteLine($"wrote {file}: {picture.Length} bytes");
                }
                return 0;
            }
            catch (RpcException error)
            {
                Explain(error);
                return 1;
            }
        }
    }

    /// Follows the events of one picture to the end of the stream.
    private static async Task<byte[]> Read(IAsyncStreamReader<GenerateResponse> stream, CancellationToken stop)
    {
        var picture = new MemoryStream();
        while (await stream.MoveNext(stop))
        {
            JobEvent happened = stream.Current.Event;
            switch (happened.EventCase)
            {
                case JobEvent.EventOneofCase.Step:
                    Console.WriteLine($"step {happened.Step.Step} of {happened.Step.StepCount}");
                    break;
                case JobEvent.EventOneofCase.Image: // of a large picture the beginning
                    happened.Image.ImageBytes.WriteTo(picture);
                    Console.WriteLine($"seed {happened.Image.Seed}");
                    break;
                case JobEvent.EventOneofCase.Chunk: // the rest of it, in order
                    happened.Chunk.Data.WriteTo(picture);
                    break;
            } // others may be added to the API: what one does not know, one skips
        }
        return picture.ToArray(); // the stream ended with OK: the picture is whole
    }

    /// Prints an error with the details that every error of the server has.
    private static void Explain(RpcException error)
    {
        Console.Error.WriteLine(error.Status);
        Google.Rpc.Status status = error.GetRpcStatus();
        if (status == null) return; // gRPC's own error
        Console.Error.WriteLine("reason: " + status.GetDetail<ErrorInfo>()?.Reason);
        BadRequest bad = status.GetDetail<BadRequest>() ?? new BadRequest();
        foreach (var violation in bad.FieldViolations)
        {
            Console.Error.WriteLine($"{violation.Field} {violation.Description}");
        }
        RetryInfo retry = status.GetDetail<RetryInfo>();
        if (retry != null) Console.Error.WriteLine("try again in " + retry.RetryDelay.ToTimeSpan());
    }

    private static Metadata Headers()
    {
        var headers = new Metadata();
        string token = Environment.GetEnvironmentVariable("DARKROOM_TOKEN");
        if (token != null) headers.Add("authorization", "Bearer " + token);
        return headers;
    }
}
