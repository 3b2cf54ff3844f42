//! Generates the code for `proto/` without protoc.

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
        .codec_path("crate::api::codec::LimitedCodec")
        // Cache keys are digests of serialized messages, so maps need a fixed order.
        .btree_map(".")
        .extern_path(".location.v1.LatLng", "crate::proto::LatLng")
        .compile_fds(descriptors)
        .expect("OUT_DIR is writable");
}
