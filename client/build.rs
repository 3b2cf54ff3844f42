//! Generates the messages and the clients of `proto/` without protoc.

fn main() {
    println!("cargo::rerun-if-changed=../proto");
    let descriptors = protox::compile(["location/v1/location_service.proto"], ["../proto"])
        .expect("proto/ compiles");
    tonic_prost_build::configure()
        .build_server(false)
        // The service's cache keys are digests of serialized messages, so maps need a fixed order.
        .btree_map(".")
        .extern_path(".location.v1.LatLng", "crate::v1::LatLng")
        .compile_fds(descriptors)
        .expect("OUT_DIR is writable");
}
