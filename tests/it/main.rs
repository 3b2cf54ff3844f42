//! The integration tests: the service over real TCP, put together by its own composition root.

/// Makes a test of each function for each pair of engines.
macro_rules! on_every_pair {
    ($($test:ident)*) => {
        on_every_pair! { @pair embedded Embedded $($test)* }
        on_every_pair! { @pair redis Redis $($test)* }
        on_every_pair! { @pair cluster Cluster $($test)* }
    };
    (@pair $module:ident $pair:ident $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test(crate::harness::Pair::$pair).await;
                }
            )*
        }
    };
}

mod conformance;
mod faults;
mod gates;
mod harness;
mod postgres;
mod process;
mod races;
mod redis;
mod replicas;
mod servers;
mod tags;
mod watch;
