// Makes a picture: swift run Example "a red circle" [seed] [file]
// DARKROOM_HOST and DARKROOM_PORT are the server's address, DARKROOM_TOKEN the token where it wants one.
import Foundation
import GRPC
import NIOCore
import NIOPosix
import SwiftProtobuf

let arguments = CommandLine.arguments
let environment = ProcessInfo.processInfo.environment
let file = arguments.count > 3 ? arguments[3] : "picture.png"

var parameters = Darkroom_V1_Parameters()
parameters.prompt = arguments.count > 1 ? arguments[1] : "a red circle on a blue background"
parameters.seed = arguments.count > 2 ? Int64(arguments[2])! : 7  // an int64
parameters.scheduler.name = "dpmpp-2m"
// Options and extensions are a google.protobuf.Struct.
parameters.scheduler.options.fields["solver_order"] = Google_Protobuf_Value(numberValue: 3)
var request = Darkroom_V1_GenerateRequest()
request.parameters = parameters

let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
let channel = try GRPCChannelPool.with(
    target: .host(environment["DARKROOM_HOST"] ?? "127.0.0.1", port: Int(environment["DARKROOM_PORT"] ?? "50051")!),
    transportSecurity: .plaintext,  // without TLS
    eventLoopGroup: group
)
var options = CallOptions()
if let token = environment["DARKROOM_TOKEN"] {
    options.customMetadata.add(name: "authorization", value: "Bearer \(token)")
}

let client = Darkroom_V1_ImageServiceAsyncClient(channel: channel)
var picture = Data()
do {
    for try await response in client.generate(request, callOptions: options) {
        switch response.event.event {
        case .step(let step): print("step \(step.step) of \(step.stepCount)")
        case .image(let image):
            picture = image.imageBytes  // of a large picture the beginning
            print("seed \(image.seed)")
        case .chunk(let chunk): picture.append(chunk.data)  // the rest of it, in order
        default: break  // others may be added to the API: what one does not know, one skips
        }
    }
    try picture.write(to: URL(fileURLWithPath: file))  // the stream ended with OK: the picture is whole
    print("wrote \(file): \(picture.count) bytes")
} catch let status as GRPCStatus {
    // The details (google.rpc.Status) are in the trailer grpc-status-details-bin.
    FileHandle.standardError.write(Data("\(status)\n".utf8))
    exit(1)
}
try await channel.close().get()
try await group.shutdownGracefully()
