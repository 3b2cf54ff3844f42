//! Server reflection, v1 and v1alpha: grpcurl up to 1.8.7 only knows the latter.

use tonic_reflection::server::{
    Builder, Error,
    v1::{ServerReflection, ServerReflectionServer},
    v1alpha,
};

use crate::proto::DESCRIPTORS;

/// `grpc.reflection.v1`.
pub fn v1() -> ServerReflectionServer<impl ServerReflection> {
    expect_valid(builder().build_v1())
}

/// `grpc.reflection.v1alpha`.
pub fn v1alpha() -> v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection> {
    expect_valid(builder().build_v1alpha())
}

fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // With these, grpcurl decodes the details of errors.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

fn expect_valid<S>(server: Result<S, Error>) -> S {
    server.unwrap_or_else(|error| unreachable!("the build generated the descriptors: {error}"))
}
