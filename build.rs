//! Generates the descriptors and the servers of `proto/` without protoc. The messages and the clients
//! are those of `client/`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() {
    for path in ["proto", "migrations"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let descriptors = protox::compile(["location/v1/location_service.proto"], ["proto"])
        .expect("proto/ compiles");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())
        .expect("OUT_DIR is writable");
    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::api::codec::LimitedCodec")
        .extern_path(".location.v1", "::location_client::v1")
        .compile_fds(descriptors)
        .expect("OUT_DIR is writable");
}
