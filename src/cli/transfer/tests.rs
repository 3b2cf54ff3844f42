//! Tests of the conversion of locations to rows and back.

use ::csv::{ByteRecord, Reader};
use location_service::proto::location::v1::{
    Address, LatLng, Location, LocationState, LocationType,
};
use prost_reflect::{DynamicMessage, Kind};
use prost_types::Timestamp;

use super::{
    csv::Columns,
    export::{Encoder, ExportArgs},
    fields::{Constant, Field, Mapping, descriptor},
    ids::{creation, derive_id},
    *,
};

/// A location with values that are difficult to quote, escape or round.
#[allow(
    clippy::needless_update,
    reason = "a new field of the proto needs no change here"
)]
fn full() -> Location {
    Location {
        id: "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70".to_owned(),
        r#type: LocationType::Storage.into(),
        display_name: " \"Łódź\", the\r\n‘old’ depot\t🏭 ".to_owned(),
        production_run_id: "Europe/Warsaw, 2".to_owned(),
        owner_id: "auth0|5f7c; \"x\"".to_owned(),
        address: Some(Address {
            address_lines: vec![
                "[3] \"A\", B".to_owned(),
                String::new(),
                "ul.\nX".to_owned(),
            ],
            locality: "Łódź".to_owned(),
            administrative_area: "05".to_owned(),
            postal_code: "00-950".to_owned(),
            region_code: "PL".to_owned(),
        }),
        coordinates: Some(LatLng {
            latitude: 51.759_048_123_456_789,
            longitude: -0.1,
        }),
        capacity: i64::MAX,
        state: LocationState::Inactive.into(),
        description: "=1+1\n\n\"\"".to_owned(),
        labels: [("a.b", "c=d"), ("naïve", ""), ("\"", "\n")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        create_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_000,
        }),
        update_time: Some(Timestamp {
            seconds: 1_700_000_001,
            nanos: 0,
        }),
        etag: "\"0af1\"".to_owned(),
        ..Location::default()
    }
}

fn dynamic(location: &Location) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor().clone());
    message.transcode_from(location).unwrap();
    message
}

/// The file that an export of one location writes.
fn exported(format: Format, location: &Location) -> Vec<u8> {
    let encoder = Encoder::new(format);
    let mut out = encoder.header().unwrap();
    encoder.append(location, &mut out).unwrap();
    out
}

fn names(header: &[&str]) -> Vec<String> {
    header.iter().map(|name| (*name).to_owned()).collect()
}

fn mappings(pairs: &[(&str, &str)]) -> Vec<Mapping> {
    pairs
        .iter()
        .map(|(field, column)| Mapping {
            field: field.parse().unwrap(),
            column: (*column).to_owned(),
        })
        .collect()
}

fn constants(pairs: &[(&str, &str)]) -> Vec<Constant> {
    pairs
        .iter()
        .map(|(field, value)| Constant {
            field: field.parse().unwrap(),
            value: (*value).to_owned(),
        })
        .collect()
}

fn columns(header: &[&str], map: &[(&str, &str)], set: &[(&str, &str)]) -> Columns {
    Columns::new(&names(header), &mappings(map), &constants(set), None).unwrap()
}

fn usage_error(header: &[&str], map: &[(&str, &str)], id_from: Option<&str>) -> String {
    Columns::new(&names(header), &mappings(map), &[], id_from)
        .unwrap_err()
        .to_string()
}

#[test]
fn csv_keeps_every_field() {
    for location in [
        full(),
        Location {
            capacity: 0,
            ..Location::default()
        },
    ] {
        let bytes = exported(Format::Csv, &location);
        let mut reader = Reader::from_reader(bytes.as_slice());
        let header: Vec<_> = reader
            .headers()
            .unwrap()
            .iter()
            .map(str::to_owned)
            .collect();
        let columns = Columns::new(&header, &[], &[], None).unwrap();
        assert!(columns.unused(&header).is_empty());
        let row = reader.byte_records().next().unwrap().unwrap();
        if location.r#type == 0 {
            assert!(columns.parse(&row).unwrap_err().starts_with("type must be"));
            continue;
        }
        let expected = Location {
            create_time: None,
            update_time: None,
            etag: String::new(),
            ..location
        };
        assert_eq!(columns.parse(&row).unwrap(), expected);
    }
}

#[test]
fn ndjson_keeps_every_field() {
    let line = exported(Format::Ndjson, &full());
    let text = std::str::from_utf8(&line).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(
        text.contains(r#""createTime":"2023-11-14T22:13:20.123456Z""#),
        "{text}"
    );
    assert!(
        text.contains(r#""capacity":"9223372036854775807""#),
        "{text}"
    );
    assert_eq!(json::parse(text, &[], None).unwrap(), full());
}

#[test]
fn ndjson_accepts_both_spellings_and_refuses_unknown_keys() {
    let parse = |line| json::parse(line, &[], None);
    let expected = Location {
        display_name: "A".to_owned(),
        capacity: 5,
        ..Location::default()
    };
    assert_eq!(
        parse(r#"{"displayName":"A","capacity":5}"#).unwrap(),
        expected
    );
    assert_eq!(
        parse(r#"{"display_name":"A","capacity":"5"}"#).unwrap(),
        expected
    );

    for (line, reason) in [
        (r#"{"colour":1}"#, "colour"),
        (r#"{"type":"LOCATION_TYPE_SHED"}"#, "LOCATION_TYPE_SHED"),
        (r#"{"displayName":"A"} {}"#, "trailing characters at column"),
        (r#"{"displayName""#, "EOF"),
        ("[]", "invalid type"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(
            error.contains(reason) && !error.contains("line 1"),
            "{error}"
        );
    }
}

#[test]
fn ndjson_derives_ids_from_any_key() {
    let parse = |line, key| json::parse(line, &constants(&[("type", "storage")]), Some(key));
    let by_number = parse(r#"{"code":12,"displayName":"A"}"#, "code").unwrap();
    let by_text = parse(r#"{"code":"12","displayName":"A"}"#, "code").unwrap();
    assert_eq!(by_number, by_text);
    assert_eq!(by_number.id, derive_id("12"));
    assert_eq!(by_number.r#type, i32::from(LocationType::Storage));
    let by_field = parse(r#"{"displayName":"A"}"#, "displayName").unwrap();
    assert_eq!(
        (by_field.id, by_field.display_name),
        (derive_id("A"), "A".to_owned())
    );
    assert!(
        parse(r#"{"displayName":"A"}"#, "code")
            .unwrap_err()
            .starts_with("code is")
    );
}

#[test]
fn columns_hold_the_field_of_their_name_unless_it_is_mapped() {
    let columns = columns(
        &[
            "display_name",
            "population",
            "zone",
            "capacity",
            "lat",
            "lon",
            "labels.colour",
            "x",
        ],
        &[
            ("capacity", "population"),
            ("production_run_id", "zone"),
            ("coordinates.latitude", "lat"),
            ("coordinates.longitude", "lon"),
            ("description", "zone"),
        ],
        &[("type", "Storage"), ("labels.origin", "a=b")],
    );
    let location = columns
        .parse(&ByteRecord::from(vec![
            "Paris",
            "7",
            "Europe/Paris",
            "9",
            "48.8",
            "2.3",
            "red",
            "?",
        ]))
        .unwrap();
    let expected = Location {
        r#type: LocationType::Storage.into(),
        display_name: "Paris".to_owned(),
        production_run_id: "Europe/Paris".to_owned(),
        capacity: 7,
        description: "Europe/Paris".to_owned(),
        coordinates: Some(LatLng {
            latitude: 48.8,
            longitude: 2.3,
        }),
        labels: [("colour", "red"), ("origin", "a=b")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..Location::default()
    };
    assert_eq!(location, expected);
}

#[test]
fn invalid_rows_name_the_field_and_the_reason() {
    let columns = columns(
        &[
            "display_name",
            "type",
            "capacity",
            "coordinates.latitude",
            "coordinates.longitude",
            "address.address_lines",
        ],
        &[],
        &[],
    );
    let parse = |cells: [&str; 6]| columns.parse(&ByteRecord::from(cells.to_vec()));
    assert_eq!(
        parse(["A", "LOCATION_TYPE_DELIVERY", "", "", "", "1 Main St"])
            .unwrap()
            .address
            .unwrap()
            .address_lines,
        ["1 Main St"]
    );
    for (cells, reason) in [
        (
            ["A", "shed", "", "", "", ""],
            "type must be delivery or storage, is `shed`",
        ),
        (["A", "unspecified", "", "", "", ""], "type must be"),
        (
            ["A", "storage", "1.5", "", "", ""],
            "capacity must be a whole number, is `1.5`",
        ),
        (
            ["A", "storage", "", "48,8", "2.3", ""],
            "coordinates.latitude must be a number",
        ),
        (
            ["A", "storage", "", "48.8", "", ""],
            "coordinates needs both",
        ),
        (
            ["A", "storage", "", "", "", "[1]"],
            "address.address_lines must be plain text or",
        ),
    ] {
        let error = parse(cells).unwrap_err();
        assert!(error.starts_with(reason), "{error}");
    }
    assert_eq!(
        columns.parse(&ByteRecord::from(vec!["A"])).unwrap_err(),
        "has 1 fields, the header has 6"
    );
    let not_utf8: &[u8] = b"\xff";
    let record: ByteRecord = [not_utf8, b"storage", b"", b"", b"", b""]
        .into_iter()
        .collect();
    assert_eq!(
        columns.parse(&record).unwrap_err(),
        "display_name isn't UTF-8"
    );
}

#[test]
fn arguments_that_contradict_the_file_name_its_columns() {
    let header = ["display_name", "type", "a", "a"];
    let error = usage_error(&header, &[("capacity", "b")], None);
    assert!(
        error.contains("no such column; it has display_name, type, a, a"),
        "{error}"
    );
    let error = usage_error(&header, &[("capacity", "a")], None);
    assert!(error.contains("several columns"), "{error}");
    assert!(usage_error(&header, &[], Some("b")).contains("--id-from b"));
    let error = usage_error(&["display_name"], &[], None);
    assert!(error.contains("--set type=VALUE"), "{error}");
    let error = "adress.locality".parse::<Field>().unwrap_err();
    assert!(error.contains("address.locality"), "{error}");
}

#[test]
fn ids_depend_on_the_value_only() {
    let columns = Columns::new(
        &names(&["id", "key", "display_name"]),
        &[],
        &constants(&[("type", "storage")]),
        Some("key"),
    )
    .unwrap();
    let id = |cells: [&str; 3]| {
        columns
            .parse(&ByteRecord::from(cells.to_vec()))
            .map(|at| at.id)
    };
    assert_eq!(id(["1", "12", "A"]), id(["2", "12", "B"]));
    assert_ne!(id(["1", "12", "A"]), id(["1", "13", "A"]));
    // A literal, because it must never change: earlier imports have ids like it.
    assert_eq!(
        id(["", "12", "A"]).unwrap(),
        "bfb79d32-a3d1-5d99-91a9-8c2595f00e1a"
    );
    assert!(id(["1", "", "A"]).unwrap_err().starts_with("key is empty"));
}

#[test]
fn only_rows_without_an_id_get_a_request_id_from_line_and_content() {
    let with_id = creation(full(), 2);
    assert_eq!(with_id.location_id, full().id);
    assert_eq!(with_id.request_id, "");
    let location = with_id.location.unwrap();
    assert_eq!((location.id.as_str(), location.etag.as_str()), ("", ""));
    assert_eq!((location.create_time, location.update_time), (None, None));

    let request_id = |name: &str, line| {
        let location = Location {
            display_name: name.to_owned(),
            ..Location::default()
        };
        creation(location, line).request_id
    };
    assert_eq!(request_id("A", 2), request_id("A", 2));
    assert_ne!(request_id("A", 2), request_id("A", 3));
    assert_ne!(request_id("A", 2), request_id("B", 2));
}

#[test]
fn csv_has_one_column_for_each_field() {
    let out = exported(Format::Csv, &full());
    let mut reader = Reader::from_reader(out.as_slice());
    let header = reader.headers().unwrap().clone();
    let columns = header.iter().collect::<Vec<_>>().join(",");
    assert!(
        columns.starts_with(
            "id,type,display_name,production_run_id,owner_id,address.address_lines,\
         address.locality,address.administrative_area,address.postal_code,\
         address.region_code,coordinates.latitude,coordinates.longitude,capacity,state,\
         description,labels,create_time,update_time,etag"
        ),
        "{columns}"
    );
    let row = reader.records().next().unwrap().unwrap();
    let cell = |name| &row[header.iter().position(|column| column == name).unwrap()];
    assert_eq!(cell("type"), "LOCATION_TYPE_STORAGE");
    assert_eq!(cell("labels"), r#"{"\"":"\n","a.b":"c=d","naïve":""}"#);
    assert_eq!(cell("create_time"), "2023-11-14T22:13:20.123456Z");
}

/// A text that the field accepts and that isn't its default.
fn sample(field: &Field) -> String {
    if let Some(values) = field.enumeration() {
        return values.values().last().unwrap().name().to_owned();
    }
    match field.kind() {
        Kind::String => format!("a {field}"),
        Kind::Bool => "true".to_owned(),
        Kind::Message(message) if message.is_map_entry() => r#"{"a.b":"c"}"#.to_owned(),
        Kind::Message(_) => "2023-11-14T22:13:20.123456Z".to_owned(),
        _ => "7".to_owned(),
    }
}

#[test]
fn every_field_of_the_descriptor_is_mapped_exported_and_imported() {
    // The number of leaves, counted without `Field`.
    let leaves: usize = descriptor()
        .fields()
        .map(|field| match field.kind() {
            Kind::Message(message)
                if message.package_name() == "location.v1" && !field.is_map() =>
            {
                message.fields().len()
            }
            _ => 1,
        })
        .sum();
    let fields = Field::all();
    assert_eq!(fields.len(), leaves);

    let mut location = DynamicMessage::new(descriptor().clone());
    for field in &fields {
        assert_eq!(field.to_string().parse::<Field>().as_ref(), Ok(field));
        let before = field.get(&location);
        field.set(&mut location, &sample(field)).unwrap();
        assert_ne!(field.get(&location), before, "{field}");
    }
    let location: Location = location.transcode_to().unwrap();
    let message = dynamic(&location);

    let ndjson = exported(Format::Ndjson, &location);
    let line = std::str::from_utf8(&ndjson).unwrap();
    assert_eq!(json::parse(line, &[], None).unwrap(), location);

    // Each column under another name, so that only the mapping connects it with its field.
    let file = exported(Format::Csv, &location);
    let mut reader = Reader::from_reader(file.as_slice());
    let header: Vec<_> = reader
        .headers()
        .unwrap()
        .iter()
        .map(|name| format!("x {name}"))
        .collect();
    let map: Vec<_> = fields
        .iter()
        .map(|field| Mapping {
            field: field.clone(),
            column: format!("x {field}"),
        })
        .collect();
    let columns = Columns::new(&header, &map, &[], None).unwrap();
    let row = reader.byte_records().next().unwrap().unwrap();
    let imported = dynamic(&columns.parse(&row).unwrap());
    for field in &fields {
        let expected = if field.is_output_only() {
            String::new()
        } else {
            field.get(&message)
        };
        assert_eq!(field.get(&imported), expected, "{field}");
    }
}

#[test]
fn an_export_to_a_file_of_another_format_is_refused() {
    for (arguments, expected) in [
        (&["a.csv.gz"][..], "export - --format csv | gzip > a.csv.gz"),
        (&["a.CSV.GZ", "--format", "csv"], "isn't compressed"),
        (&["a.ndjson.zst"], "zstd > a.ndjson.zst"),
        (&["a.tsv"], "set --format csv or --format ndjson"),
    ] {
        let error = export_args(arguments).format().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{error}");
    }
    for (arguments, format) in [
        (&["a.csv"][..], Format::Csv),
        (&["a.txt", "--format", "csv"], Format::Csv),
        (&["-"], Format::Ndjson),
        (&["/dev/null"], Format::Ndjson),
    ] {
        assert_eq!(export_args(arguments).format().unwrap(), format);
    }
}

fn export_args(arguments: &[&str]) -> ExportArgs {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: ExportArgs,
    }
    use clap::Parser as _;
    Command::parse_from(["export"].iter().chain(arguments)).args
}
