// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Example",
    platforms: [.macOS(.v12)],
    dependencies: [.package(url: "https://github.com/grpc/grpc-swift.git", .upToNextMajor(from: "1.23.0"))],
    targets: [.executableTarget(name: "Example", dependencies: [.product(name: "GRPC", package: "grpc-swift")])]
)
