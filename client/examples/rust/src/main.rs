// Makes a picture: cargo run -- "a red circle" [seed] [file]
// DARKROOM_ADDRESS is the server's address, DARKROOM_TOKEN the token where it wants one.
use std::collections::BTreeMap;
use std::env;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

pub mod darkroom {
    tonic::include_proto!("darkroom.v1");
}
use darkroom::image_service_client::ImageServiceClient;
use darkroom::job_event::Event;
use darkroom::{GenerateRequest, Parameters, SchedulerSpec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let prompt = arguments.next().unwrap_or("a red circle on a blue background".into());
    let seed: i64 = arguments.next().unwrap_or("7".into()).parse()?; // an int64
    let file = arguments.next().unwrap_or("picture.png".into());
    match generate(prompt, seed).await {
        Ok(picture) => {
            std::fs::write(&file, &picture)?;
            println!("wrote {file}: {} bytes", picture.len());
            Ok(())
        }
        Err(status) => {
            explain(&status);
            std::process::exit(1);
        }
    }
}

async fn generate(prompt: String, seed: i64) -> Result<Vec<u8>, Status> {
    // Options and extensions are a google.protobuf.Struct.
    let order = Value { kind: Some(Kind::NumberValue(3.0)) };
    let options = Struct { fields: BTreeMap::from([("solver_order".to_string(), order)]) };
    let scheduler = SchedulerSpec { name: "dpmpp-2m".into(), options: Some(options), ..Default::default() };
    let parameters =
        Parameters { prompt, seed: Some(seed), scheduler: Some(scheduler), ..Default::default() };
    let mut request =
        Request::new(GenerateRequest { parameters: Some(parameters), ..Default::default() });
    if let Ok(token) = env::var("DARKROOM_TOKEN") {
        let header = format!("Bearer {token}").parse();
        let header = header.map_err(|_| Status::new(Code::InvalidArgument, "DARKROOM_TOKEN is no token"))?;
        request.metadata_mut().insert("authorization", header);
    }
    let address = env::var("DARKROOM_ADDRESS").unwrap_or("127.0.0.1:50051".into());
    let client = ImageServiceClient::connect(format!("http://{address}")).await; // https: the feature tls-roots
    let mut client = client.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
    let mut stream = client.generate(request).await?.into_inner(); // dropping it stops the job within a step
    let mut picture = Vec::new();
    while let Some(response) = stream.message().await? {
        match response.event.and_then(|event| event.event) {
            Some(Event::Step(step)) => println!("step {} of {}", step.step, step.step_count),
            Some(Event::Image(image)) => {
                picture = image.image_bytes; // of a large picture the beginning
                println!("seed {}", image.seed);
            }
            Some(Event::Chunk(chunk)) => picture.extend(chunk.data), // the rest of it, in order
            _ => {} // others may be added to the API: what one does not know, one skips
        }
    }
    Ok(picture) // the stream ended with OK: the picture is whole
}

/// Prints an error with the details that every error of the server has.
fn explain(status: &Status) {
    eprintln!("{:?}: {}", status.code(), status.message());
    let details = status.get_error_details();
    if let Some(info) = details.error_info() {
        eprintln!("reason: {}", info.reason);
    }
    if let Some(request) = details.bad_request() {
        for violation in &request.field_violations {
            eprintln!("{} {}", violation.field, violation.description);
        }
    }
    if let Some(retry) = details.retry_info() {
        eprintln!("try again in {:?}", retry.retry_delay);
    }
}
