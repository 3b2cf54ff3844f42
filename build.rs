//! Generates the code for `proto/` without protoc: messages and client from prost's own generator,
//! the server by hand, because the cached methods answer bytes that are already encoded.

use std::{env, fs, path::PathBuf};

use prost::Message as _;
use tonic_build::manual;

const PROTO: &str = "location/v1/location_service.proto";

/// The methods whose answers come from the cache as encoded bytes.
const CACHED: [&str; 3] = ["ListLocations", "GetLocation", "ListLocationReports"];

fn main() {
    for path in ["proto", "migrations"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let descriptors = protox::compile([PROTO], ["proto"]).expect("proto/ compiles");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())
        .expect("OUT_DIR is writable");

    let file = descriptors
        .file
        .iter()
        .find(|file| file.name() == PROTO)
        .expect("the descriptor set holds the file that it was made from");
    let servers: Vec<_> = file
        .service
        .iter()
        .map(|service| {
            let methods = service.method.iter().map(|method| {
                let cached = CACHED.contains(&method.name());
                manual::Method::builder()
                    .name(snake_case(method.name()))
                    .route_name(method.name())
                    .input_type(rust_type(method.input_type()))
                    .output_type(if cached {
                        "crate::api::codec::Encoded".to_owned()
                    } else {
                        rust_type(method.output_type())
                    })
                    .codec_path(if cached {
                        "crate::api::codec::EncodedCodec"
                    } else {
                        "tonic_prost::ProstCodec"
                    })
                    .build()
            });
            methods
                .fold(
                    manual::Service::builder()
                        .name(service.name())
                        .package(file.package()),
                    manual::ServiceBuilder::method,
                )
                .build()
        })
        .collect();
    manual::Builder::new().build_client(false).compile(&servers);

    tonic_prost_build::configure()
        .btree_map(".")
        .build_server(false)
        .compile_fds(descriptors)
        .expect("OUT_DIR is writable");
}

/// `.location.v1.Location` as the path of the generated type.
fn rust_type(proto_type: &str) -> String {
    match proto_type {
        ".google.protobuf.Empty" => "crate::proto::Empty".to_owned(),
        name => format!("crate::proto{}", name.replace('.', "::")),
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for char in name.chars() {
        if char.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(char.to_lowercase());
    }
    snake
}
