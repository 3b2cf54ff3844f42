//! `import`, `export` and `delete`, by the real binary against a real service.

use std::{
    fmt::Write as _,
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use location_service::proto::location::v1;

use crate::{
    harness::{create, eventually, token},
    process::{Home, Process, service},
};

/// A command of the binary that calls a service as an admin.
fn client_command(server: &Process, command: &str, admin: &str) -> Command {
    let mut binary = service([command, "--server", &server.url]);
    binary.env("LOCATION_SERVICE_TOKEN", token(admin, true));
    binary
}

fn import(service: &Process, file: &Path, arguments: &[&str]) -> Output {
    let mut import = client_command(service, "import", "root");
    let output = import.arg(file).args(arguments).output();
    output.expect("the binary runs")
}

fn export(service: &Process, file: &Path) -> String {
    let mut export = client_command(service, "export", "root");
    let output = export.arg(file).output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(file).expect("it was written")
}

/// The text that a command printed to stderr.
fn summary(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.trim_end().to_owned()
}

fn write(home: &Home, name: &str, content: &str) -> PathBuf {
    let path = home.dir.path().join(name);
    fs::write(&path, content).expect("a file");
    path
}

fn places(count: usize) -> String {
    let mut csv = String::from("number,display_name,people,zone\n");
    for number in 0..count {
        writeln!(csv, "{number},\"Place, {number}\",{number},Europe/Paris").expect("a string");
    }
    csv
}

const MAPPED: [&str; 8] = [
    "--set",
    "type=storage",
    "--map",
    "capacity=people",
    "--map",
    "production_run_id=zone",
    "--id-from",
    "number",
];

#[tokio::test]
async fn an_import_that_runs_again_creates_nothing_twice_and_reports_rejected_rows() {
    let home = Home::new();
    let service = home.start().await;
    let mut csv = places(2_500);
    csv.push_str("2500,,7,Europe/Paris\n2501,Negative,-7,Europe/Paris\n2502,Good,7,\n");
    let file = write(&home, "places.csv", &csv);

    let first = import(&service, &file, &MAPPED);
    assert_eq!(first.status.code(), Some(1), "{first:?}");
    let text = summary(&first);
    assert!(
        text.contains("2,501 created, 0 updated, 0 unchanged, 0 different, 2 rejected"),
        "{text}"
    );
    let rejects = fs::read_dir(home.dir.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains("reject"))
        .expect("a file of rejected rows");
    let rejects = fs::read_to_string(rejects).expect("it is text");
    for (line, reason) in [("2502", "display_name"), ("2503", "capacity")] {
        let row = rejects.lines().find(|row| row.contains(line));
        assert!(row.is_some_and(|row| row.contains(reason)), "{rejects}");
    }

    let second = import(&service, &file, &MAPPED);
    let text = summary(&second);
    assert!(
        text.contains("0 created, 0 updated, 2,501 unchanged, 0 different, 2 rejected"),
        "{text}"
    );
}

/// The counts of a summary: created, updated, unchanged, different, rejected. Checks that the command
/// succeeded exactly if the last two are zero.
fn counts(output: &Output) -> [u64; 5] {
    let text = summary(output);
    let line = text.lines().find(|line| line.contains(" created, "));
    let line = line.expect(&text);
    let counts = ["created", "updated", "unchanged", "different", "rejected"].map(|name| {
        let (before, _) = line.split_once(&format!(" {name}")).expect(&text);
        let number = before.rsplit([' ', ':']).next().expect("a number");
        number.replace(',', "").parse().expect(&text)
    });
    let is_complete = counts[3..] == [0, 0];
    assert_eq!(output.status.success(), is_complete, "{text}");
    counts
}

#[tokio::test]
async fn rows_that_are_there_are_compared() {
    let home = Home::new();
    let service = home.start().await;
    let run = |file: &Path, arguments: &[&str]| {
        let keyed = ["--set", "type=storage", "--id-from", "k"];
        counts(&import(&service, file, &[&keyed, arguments].concat()))
    };
    let stock = write(
        &home,
        "stock.csv",
        "k,display_name,capacity\n1,A,1\n2,B,2\n3,C,3\n1,A,1\n",
    );
    assert_eq!(run(&stock, &["--dry-run"]), [3, 0, 0, 0, 1]);
    assert_eq!(run(&stock, &[]), [3, 0, 0, 0, 1]);
    let stock = write(
        &home,
        "stock.csv",
        "k,display_name,capacity,description\n1,A,1,\n2,Beta,2,new\n3,C,,\n4,D,4,\n",
    );
    assert_eq!(run(&stock, &["--dry-run", "--update"]), [1, 2, 1, 0, 0]);
    assert_eq!(run(&stock, &[]), [1, 0, 1, 2, 0]);
    assert_eq!(run(&stock, &["--update"]), [0, 2, 2, 0, 0]);
    assert_eq!(run(&stock, &["--update"]), [0, 0, 4, 0, 0]);
    // The same keys in another run move only if they are asked to.
    let moved = ["--set", "production_run_id=b"];
    assert_eq!(run(&stock, &moved), [0, 0, 0, 4, 0]);
    assert_eq!(
        run(&stock, &[&moved[..], &["--id-namespace", "b"]].concat()),
        [4, 0, 0, 0, 0]
    );
    let shown = import(
        &service,
        &stock,
        &[
            &["--set", "type=storage", "--id-from", "k", "--verbose"],
            &moved[..],
            &["--update"],
        ]
        .concat(),
    );
    assert_eq!(counts(&shown), [0, 4, 0, 0, 0]);
    let lines = String::from_utf8_lossy(&shown.stdout);
    assert!(
        lines.starts_with("line 2: updated: production_run_id is `b` in the file"),
        "{lines}"
    );

    // Rows without ids are matched with the locations that exist now.
    let dock = write(&home, "dock.csv", "display_name,capacity\rDock,5\rDock,5\r");
    let storage = ["--set", "type=storage"];
    assert_eq!(counts(&import(&service, &dock, &storage)), [2, 0, 0, 0, 0]);
    assert_eq!(counts(&import(&service, &dock, &storage)), [0, 0, 2, 0, 0]);
    let docks = home.dir.path().join("docks.ndjson");
    let mut filtered = client_command(&service, "export", "root");
    filtered
        .arg(&docks)
        .args(["--query", "DOCK", "--order-by", "display_name"]);
    assert!(filtered.status().expect("the binary runs").success());
    let deleted = client_command(&service, "delete", "root")
        .arg("--from")
        .arg(&docks)
        .output()
        .expect("the binary runs");
    assert!(
        summary(&deleted).ends_with("2 deleted, 0 missing, 0 rejected"),
        "{deleted:?}"
    );
    assert_eq!(counts(&import(&service, &dock, &storage)), [2, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_rows_of_a_batch_are_stored_when_one_is_refused() {
    let home = Home::new();
    let service = home.start().await;
    let run = |command: &str, arguments: &[&str]| {
        let output = client_command(&service, command, "root")
            .env("LOCATION_SERVICE_TOKEN", token("bob", false))
            .args(arguments)
            .args(["--id-from", "k", "--batch-size", "100"])
            .output();
        output.expect("the binary runs")
    };
    let content = |row: &dyn Fn(usize) -> String| {
        let rows = (0..250).map(|number| format!("{number},{}\n", row(number)));
        let header = "k,display_name,capacity,owner_id\n".to_owned();
        rows.fold(header, |file, row| file + &row)
    };
    let file = write(&home, "s.csv", &content(&|_| "A,1,".to_owned()));
    let path = file.to_str().expect("UTF-8");
    let imported = run("import", &[path, "--set", "type=storage"]);
    assert_eq!(counts(&imported), [250, 0, 0, 0, 0]);

    // Row 7 has an invalid name and row 8 another owner: both are refused, in one batch. Row 150 names
    // the caller as its owner and is accepted.
    write(
        &home,
        "s.csv",
        &content(&|number| match number {
            7 => format!("{},2,", "x".repeat(300)),
            8 => "A,2,eve".to_owned(),
            150 => "A,2,bob".to_owned(),
            _ => "A,2,".to_owned(),
        }),
    );
    for update in [&["--update", "--dry-run"][..], &["--update"]] {
        let arguments = [&[path, "--set", "type=storage"], update].concat();
        let updated = run("import", &arguments);
        assert_eq!(counts(&updated), [0, 248, 0, 0, 2], "{updated:?}");
    }
    let rejects = fs::read_to_string(format!("{path}.rejects.csv")).expect("a file");
    let reasons: Vec<_> = rejects.lines().skip(1).collect();
    assert!(reasons[0].starts_with("9,\"display_name must"), "{rejects}");
    assert!(
        reasons[1].starts_with("10,") && reasons.len() == 2,
        "{rejects}"
    );

    // A location that another caller changes all the time.
    let id = {
        let copy = home.dir.path().join("copy.csv");
        let rows = export(&service, &copy);
        let row = rows.lines().nth(1).expect("a row");
        row.split(',').next().expect("an id").to_owned()
    };
    let mut admin = service.admin().await;
    let others = tokio::spawn(async move {
        for number in 0.. {
            let location = v1::Location {
                id: id.clone(),
                description: number.to_string(),
                ..v1::Location::default()
            };
            let request = v1::UpdateLocationRequest {
                location: Some(location),
                ..v1::UpdateLocationRequest::default()
            };
            admin.update_location(request).await.expect("updated");
        }
    });
    write(&home, "s.csv", &content(&|_| "B,3,".to_owned()));
    let arguments = [path, "--set", "type=storage", "--update"];
    let updated = tokio::task::block_in_place(|| run("import", &arguments));
    others.abort();
    let [_, changed, .., rejected] = counts(&updated);
    assert!(changed >= 249 && changed + rejected == 250, "{updated:?}");

    write(&home, "gone.csv", "k\n3\n4\n");
    let gone = home.dir.path().join("gone.csv");
    let deleted = run("delete", &["--from", gone.to_str().expect("UTF-8")]);
    assert!(summary(&deleted).ends_with("2 deleted, 0 missing, 0 rejected"));
    for (arguments, expected) in [
        (&["--dry-run"][..], "248 deleted, 2 missing, 0 rejected"),
        (&[], "248 deleted, 2 missing, 0 rejected"),
        (&[], "0 deleted, 250 missing, 0 rejected"),
    ] {
        let deleted = run("delete", &[&["--from", path], arguments].concat());
        assert!(summary(&deleted).ends_with(expected), "{deleted:?}");
    }
}

#[tokio::test]
async fn ids_of_locations_that_the_caller_may_not_see_are_rejects() {
    let home = Home::new();
    let service = home.start().await;
    let as_user = |user: &str, arguments: &[&str]| {
        let output = client_command(&service, "import", "root")
            .env("LOCATION_SERVICE_TOKEN", token(user, false))
            .arg(home.dir.path().join("sites.csv"))
            .args(["--set", "type=storage"])
            .args(arguments)
            .output();
        counts(&output.expect("the binary runs"))
    };
    write(&home, "sites.csv", "k,display_name\n1,A\n2,B\n3,C\n");
    for arguments in [&["--id-from", "k"][..], &["--id-from", "k", "--update"]] {
        assert_eq!(as_user("ann", arguments)[4], 0);
        assert_eq!(as_user("bob", arguments), [0, 0, 0, 0, 3]);
    }
    assert_eq!(
        as_user("bob", &["--id-from", "k", "--id-namespace", "bob"]),
        [3, 0, 0, 0, 0]
    );
    // Without ids, each caller has rows of their own.
    for user in ["ann", "bob"] {
        assert_eq!(as_user(user, &[]), [3, 0, 0, 0, 0]);
        assert_eq!(as_user(user, &[]), [0, 0, 3, 0, 0]);
    }
    // Only an admin chooses the owner, so the location differs from the row.
    write(&home, "sites.csv", "k,display_name,owner_id\n9,A,eve\n");
    assert_eq!(as_user("bob", &["--id-from", "k"]), [0, 0, 0, 1, 0]);
    assert_eq!(
        as_user("bob", &["--id-from", "k", "--update"]),
        [0, 0, 0, 0, 1]
    );
}

#[tokio::test]
async fn files_of_spreadsheets_come_in_and_go_out_exactly() {
    let home = Home::new();
    let service = home.start().await;
    let text = "sep=;\r\nNr;Name;Breite;Länge;Plätze;Land;\r\n\
                1; Zürich ;47,376886;8,541694;1.234;ch;\r\n;;;;;;\r\n\
                2;\"Łódź; \"\"Süd\"\"\";40,631900787353516;-2,5e-7;5;UK;\r\n\
                3;Null;-0;5e-324;;;\r\n";
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let file = home.dir.path().join("orte.csv");
    fs::write(&file, [vec![0xff, 0xfe], utf16].concat()).expect("a file");
    let mapped = [
        "--decimal-comma",
        "--set=type=delivery",
        "--id-from=nr",
        "--map=display_name=Name",
        "--map=coordinates.latitude=Breite",
        "--map=coordinates.longitude=Länge",
        "--map=capacity=Plätze",
        "--map=address.region_code=Land",
    ];
    assert_eq!(counts(&import(&service, &file, &mapped)), [3, 0, 0, 0, 0]);
    assert_eq!(counts(&import(&service, &file, &mapped)), [0, 0, 3, 0, 0]);
    for extension in ["csv.gz", "tsv.zst", "ndjson.gz", "ndjson"] {
        let copy = home.dir.path().join(format!("copy.{extension}"));
        let exported = client_command(&service, "export", "root")
            .arg(&copy)
            .output();
        assert!(exported.expect("the binary runs").status.success());
        let magic = fs::read(&copy).expect("a file");
        assert_eq!(magic.starts_with(&[0x1f, 0x8b]), extension.ends_with("gz"));
        assert_eq!(
            counts(&import(&service, &copy, &[])),
            [0, 0, 3, 0, 0],
            "{extension}"
        );
    }
    let copy = fs::read_to_string(home.dir.path().join("copy.ndjson")).expect("a file");
    for part in [
        r#""displayName":"Łódź; \"Süd\"""#,
        r#""latitude":40.631900787353516,"longitude":-2.5e-7"#,
        r#""latitude":-0,"longitude":5e-324"#,
        r#""regionCode":"GB""#,
        r#""displayName":"Zürich""#,
        r#""capacity":"1234""#,
    ] {
        assert!(copy.contains(part), "{part}: {copy}");
    }
}

#[tokio::test]
async fn an_export_is_imported_unchanged() {
    let home = Home::new();
    let service = home.start().await;
    let mut client = service.admin().await;
    let full = v1::Location {
        r#type: v1::LocationType::Delivery.into(),
        display_name: "Quai \"7\", Étage 2".to_owned(),
        production_run_id: "spring".to_owned(),
        owner_id: "ann".to_owned(),
        address: Some(v1::Address {
            address_lines: vec!["7, quai de la Rapée".to_owned(), "B;C".to_owned()],
            locality: "Paris".to_owned(),
            administrative_area: "Île-de-France".to_owned(),
            postal_code: "75012".to_owned(),
            region_code: "FR".to_owned(),
        }),
        coordinates: Some(v1::LatLng {
            latitude: 48.846_1,
            longitude: -2.5e-7,
        }),
        capacity: i64::MAX,
        state: v1::LocationState::Inactive.into(),
        description: "two\nlines".to_owned(),
        labels: [("a.b".to_owned(), "{}".to_owned())].into(),
        ..v1::Location::default()
    };
    for location in [
        full,
        v1::Location {
            r#type: v1::LocationType::Storage.into(),
            display_name: "Plain".to_owned(),
            ..v1::Location::default()
        },
    ] {
        client
            .create_location(create(location))
            .await
            .expect("created");
    }

    for (labels, expected) in [
        (&["--label", "a.b={}"][..], 1),
        (&["--label", "a.b={}", "--label", "c=d"], 0),
        (&["--label", "a.b="], 0),
        (
            &[
                "--state",
                "inactive",
                "--owner-id",
                "ann",
                "--type",
                "delivery",
            ],
            1,
        ),
        (&["--production-run-id", "", "--query", "PLAIN"], 1),
    ] {
        let mut filtered = client_command(&service, "export", "root");
        let output = filtered.args(labels).output().expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        let rows = output.stdout.split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(rows, expected, "{labels:?}");
    }
    for format in ["ndjson", "csv"] {
        let exported = export(&service, &home.dir.path().join(format!("all.{format}")));
        let other = Home::new();
        let empty = other.start().await;
        let done = import(
            &empty,
            &write(&other, &format!("all.{format}"), &exported),
            &[],
        );
        assert!(done.status.success(), "{}", summary(&done));
        let again = export(&empty, &other.dir.path().join(format!("again.{format}")));
        assert_eq!(without_output_only(&again), without_output_only(&exported));
    }
}

/// The words of an export, sorted, without the values that the service sets.
fn without_output_only(export: &str) -> Vec<String> {
    let timestamp = |text: &str| text.starts_with("20") && text.ends_with('Z');
    let etag = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut words: Vec<_> = export
        .split(['"', ',', '\n', '\\'])
        .filter(|word| !timestamp(word) && !etag(word))
        .map(str::to_owned)
        .collect();
    words.sort();
    words
}

#[tokio::test]
async fn transfers_go_on_when_standard_error_is_closed() {
    let home = Home::new();
    let service = home.start().await;
    let unread = || {
        let (_, writer) = io::pipe().expect("a pipe");
        writer
    };
    // A column that isn't imported, and a leftover, are noted.
    let file = write(&home, "places.csv", "display_name,x\nA,1\n");
    let imported = client_command(&service, "import", "root")
        .arg(&file)
        .args(["--set", "type=storage"])
        .stderr(unread())
        .status();
    write(&home, "copy.ndjson.4294967295.partial", "");
    let copy = home.dir.path().join("copy.ndjson");
    let exported = client_command(&service, "export", "root")
        .arg(&copy)
        .stderr(unread())
        .status();
    // The summaries can't be printed.
    for status in [imported, exported] {
        assert_eq!(status.expect("the binary runs").code(), Some(1));
    }
    let rows = fs::read_to_string(copy).expect("it was written");
    assert_eq!(rows.lines().count(), 1, "{rows}");
}

fn interrupt(child: &Child) {
    assert!(servers::signal("INT", [child.id().to_string()]));
}

#[tokio::test]
async fn an_interrupted_export_exits_with_130_and_leaves_no_file() {
    // It accepts connections and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound");
    let home = Home::new();
    let folder = home.dir.path().join("exports");
    fs::create_dir(&folder).expect("a folder");
    let files = || fs::read_dir(&folder).expect("the folder").count();
    let child = service(["export", "--server", &format!("http://{address}")])
        .arg(folder.join("all.ndjson"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    eventually("the export begins", || {
        let begun = files() == 1;
        async move { begun }
    })
    .await;
    interrupt(&child);
    let stopped = child.wait_with_output().expect("it ends");
    assert_eq!(stopped.status.code(), Some(130), "{}", summary(&stopped));
    assert_eq!(summary(&stopped), "error: interrupted");
    assert_eq!(files(), 0);
}

#[tokio::test]
async fn a_second_run_completes_an_interrupted_import() {
    let home = Home::new();
    let service = home.start().await;
    let file = write(&home, "places.csv", &places(20_000));
    let mut import_command = client_command(&service, "import", "root");
    let child = import_command
        .arg(&file)
        .args(MAPPED)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut client = service.admin().await;
    eventually("the import begins", || {
        let mut client = client.clone();
        async move {
            let list = client.list_locations(v1::ListLocationsRequest::default());
            !list.await.expect("listed").get_ref().locations.is_empty()
        }
    })
    .await;
    interrupt(&child);
    let stopped = child.wait_with_output().expect("it ends");
    assert_eq!(stopped.status.code(), Some(130), "{}", summary(&stopped));

    let second = import(&service, &file, &MAPPED);
    assert!(second.status.success(), "{}", summary(&second));
    let request = v1::ListLocationsRequest {
        include_total_size: true,
        ..v1::ListLocationsRequest::default()
    };
    let list = client.list_locations(request).await.expect("listed");
    assert_eq!(list.into_inner().total_size, 20_000);
}
