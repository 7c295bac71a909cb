// Generates the client from the protos below $DARKROOM, this repository's folder.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-env-changed=DARKROOM");
    let protos = format!("{}/protos", std::env::var("DARKROOM")?);
    let service = format!("{protos}/darkroom/v1/image_service.proto");
    tonic_build::configure().build_server(false).compile_protos(&[service], &[protos])?;
    Ok(())
}
