//! The integration tests: the service over real TCP, built by its own composition root.

/// Expands each function to one test for each pair of engines. The functions' argument is
/// - `pair`: the pair,
/// - `app`: a service on it, which is stopped after the test,
/// - `owned`: a service on it, which the test stops itself.
macro_rules! on_every_pair {
    ($given:ident: $($test:ident)*) => {
        on_every_pair! { @pair embedded Embedded $given $($test)* }
        on_every_pair! { @pair redis Redis $given $($test)* }
        on_every_pair! { @pair cluster Cluster $given $($test)* }
    };
    (@pair $module:ident $pair:ident $given:ident $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let pair = crate::harness::Pair::$pair;
                    on_every_pair! { @run $given super::$test, pair }
                }
            )*
        }
    };
    (@run pair $test:path, $pair:ident) => {
        $test($pair).await;
    };
    (@run owned $test:path, $pair:ident) => {
        $test(crate::harness::TestApp::spawn_on($pair).await).await;
    };
    (@run app $test:path, $pair:ident) => {
        let app = crate::harness::TestApp::spawn_on($pair).await;
        $test(&app).await;
        app.stop().await;
    };
}

mod cache_service;
mod clients;
mod conformance;
mod connection_age;
mod costs;
mod database;
mod deployment;
mod durability;
mod faults;
mod gates;
mod harness;
mod hostile;
mod layers;
mod migrations;
mod notify;
mod observe;
mod postgres;
mod process;
mod proxy;
mod published_keys;
mod races;
mod redis;
mod redis_proxy;
mod redis_refusals;
mod replicas;
mod retries;
mod robustness;
mod sessions;
mod shares;
mod startup;
mod tags;
mod tls;
mod traces;
mod transfer;
mod watch;
