//! Tests of the conversion of locations to rows and back.

use ::csv::Reader;
use location_service::proto::location::v1::{
    Address, LatLng, Location, LocationState, LocationType,
};
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind};
use prost_types::Timestamp;
use uuid::Uuid;

use super::{
    compare::{differences, update},
    csv::{Columns, append_row},
    export::{Encoder, ExportArgs, Form},
    fields::{Constant, Field, Mapping, MappingSource, descriptor},
    ids::{derive_id, namespace, row_id},
    import::records::{Record, Records},
    json::Keys,
    numbers::NumberStyle,
    row::{Parsed, RowRules},
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
    let form = Form {
        format,
        delimiter: b',',
        compression: None,
    };
    let mut encoder = Encoder::new(form, Vec::new(), false, false);
    let mut out = encoder.header();
    encoder.append(location, &mut out).unwrap();
    out
}

fn names(header: &[&str]) -> Vec<String> {
    header.iter().map(|name| (*name).to_owned()).collect()
}

/// The records of a CSV file.
fn records(text: &[u8]) -> Vec<Record> {
    let mut records = Records::new(text);
    std::iter::from_fn(|| records.next_record().unwrap()).collect()
}

fn record(cells: &[&str]) -> Record {
    let mut row = Vec::new();
    append_row(cells.iter().copied(), b',', &mut row);
    records(&row).remove(0)
}

fn header_of(file: &[u8]) -> Vec<String> {
    let header = &records(file)[0];
    (0..header.len())
        .map(|index| header.text(index).unwrap().into_owned())
        .collect()
}

fn mappings(pairs: &[(&str, &str)]) -> Vec<Mapping> {
    pairs
        .iter()
        .map(|(field, column)| Mapping {
            field: field.parse().unwrap(),
            source: match column.strip_prefix('"') {
                Some(text) => MappingSource::Text(text.trim_end_matches('"').to_owned()),
                None => MappingSource::Column((*column).to_owned()),
            },
        })
        .collect()
}

fn rules(pairs: &[(&str, &str)]) -> RowRules {
    let constants = pairs
        .iter()
        .map(|(field, value)| Constant {
            field: field.parse().unwrap(),
            value: (*value).to_owned(),
        })
        .collect();
    RowRules::new(constants, NumberStyle::default(), namespace(None)).unwrap()
}

fn columns(header: &[&str], map: &[(&str, &str)], set: &[(&str, &str)]) -> Columns {
    Columns::new(&names(header), &mappings(map), rules(set), None).unwrap()
}

fn usage_error(header: &[&str], map: &[(&str, &str)], id_from: Option<&str>) -> String {
    Columns::new(&names(header), &mappings(map), rules(&[]), id_from)
        .unwrap_err()
        .to_string()
}

fn json(line: &str, map: &[(&str, &str)], id_from: Option<&str>) -> Result<Parsed, String> {
    let set = [("type", "storage")];
    let set = if line.contains("\"type\"") {
        &[][..]
    } else {
        &set
    };
    Keys::new(&mappings(map), rules(set), id_from).parse(line)
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
        let header = header_of(&bytes);
        let columns = Columns::new(&header, &[], rules(&[]), None).unwrap();
        assert!(columns.unused(&header).is_empty());
        let row = &records(&bytes)[1];
        if location.r#type == 0 {
            assert!(columns.parse(row).unwrap_err().starts_with("type must be"));
            continue;
        }
        let parsed = columns.parse(row).unwrap();
        assert_read_back(&parsed, location);
    }
}

/// Checks that a row has all of a location except what the service sets.
fn assert_read_back(parsed: &Parsed, location: Location) {
    let found = differences(&parsed.location, &parsed.given, &location).unwrap();
    assert_eq!(found, []);
    let expected = Location {
        create_time: None,
        update_time: None,
        etag: String::new(),
        ..location
    };
    assert_eq!(parsed.location, expected);
}

#[test]
fn ndjson_keeps_every_field() {
    for location in [
        full(),
        Location {
            r#type: LocationType::Storage.into(),
            display_name: "A".to_owned(),
            state: LocationState::Active.into(),
            coordinates: Some(LatLng::default()),
            ..Location::default()
        },
    ] {
        let line = exported(Format::Ndjson, &location);
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(text.lines().count(), 1);
        // Another parser reads it too.
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        value
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let read = DynamicMessage::deserialize(descriptor().clone(), value).unwrap();
        assert_eq!(read.transcode_to::<Location>().unwrap(), location);
        let parsed = json(text, &[], None).unwrap();
        assert_read_back(&parsed, location);
    }
    let line = exported(Format::Ndjson, &full());
    let text = std::str::from_utf8(&line).unwrap();
    for part in [
        r#""createTime":"2023-11-14T22:13:20.123456Z""#,
        r#""capacity":"9223372036854775807""#,
    ] {
        assert!(text.contains(part), "{text}");
    }
}

/// Doubles up to a limit: any bits, all sizes, and those that are often rounded.
fn degrees(limit: f64) -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("in range", move |degrees| degrees.abs() <= limit),
        -limit..=limit,
        prop::sample::select(vec![
            0.0,
            -0.0,
            5e-324,
            -5e-324,
            2.225_073_858_507_201e-308,
            40.631_900_787_353_516,
            1e-5,
            9.999_999_999_999_999e-6,
            -2.5e-7,
            limit,
        ]),
    ]
}

proptest! {
    #[test]
    fn doubles_are_exact_in_all_formats(latitude in degrees(90.0), longitude in degrees(180.0)) {
        let location = Location {
            r#type: LocationType::Storage.into(),
            display_name: "F".to_owned(),
            state: LocationState::Active.into(),
            coordinates: Some(LatLng { latitude, longitude }),
            ..Location::default()
        };
        let line = exported(Format::Ndjson, &location);
        let line = std::str::from_utf8(&line).unwrap();
        let file = exported(Format::Csv, &location);
        let header = header_of(&file);
        let columns = |style| {
            let rules = RowRules::new(Vec::new(), style, namespace(None)).unwrap();
            Columns::new(&header, &[], rules, None).unwrap()
        };
        let comma = NumberStyle { decimal_comma: true };
        let row = &records(&file)[1];
        let with_commas: Vec<_> = (0..row.len())
            .map(|index| row.text(index).unwrap())
            .map(|cell| if real(&cell) { cell.replace('.', ",") } else { cell.into_owned() })
            .collect();
        let with_commas: Vec<_> = with_commas.iter().map(String::as_str).collect();
        for parsed in [
            json(line, &[], None),
            columns(NumberStyle::default()).parse(row),
            columns(comma).parse(&record(&with_commas)),
        ] {
            // As the service receives it.
            let sent = parsed.unwrap().location.encode_to_vec();
            let read = Location::decode(&*sent).unwrap().coordinates.unwrap();
            prop_assert_eq!(read.latitude.to_bits(), latitude.to_bits());
            prop_assert_eq!(read.longitude.to_bits(), longitude.to_bits());
        }
    }
}

/// Whether a cell is a number with decimals.
fn real(cell: &str) -> bool {
    cell.contains('.') && cell.parse::<f64>().is_ok()
}

#[test]
fn ndjson_accepts_both_spellings_and_refuses_unknown_keys() {
    let expected = Location {
        r#type: LocationType::Storage.into(),
        display_name: "A".to_owned(),
        capacity: 5,
        ..Location::default()
    };
    for line in [
        r#"{"displayName":"A","capacity":5}"#,
        r#"{"display_name":"A","capacity":"5"}"#,
        r#"{"Display Name":"A","capacity":5.0,"reject_line":3,"reject_reason":"x"}"#,
        r#"{"displayName":"A","capacity":5,"address":null,"description":null}"#,
    ] {
        assert_eq!(json(line, &[], None).unwrap().location, expected, "{line}");
    }
    for (line, reason) in [
        (r#"{"colour":1}"#, "`colour` isn't a field"),
        (r#"{"displayNam":"A"}"#, "did you mean `display_name`"),
        (r#"{"address":{"city":1}}"#, "`address.city` isn't a field"),
        (r#"{"type":"LOCATION_TYPE_SHED"}"#, "type must be"),
        (r#"{"displayName":"A"} {}"#, "trailing characters at column"),
        (r#"{"displayName""#, "EOF"),
        ("[]", "isn't a JSON object"),
        (r#"{"a":1,"a":2}"#, "has the key `a` twice"),
        (
            r#"{"displayName":"A","display_name":"B"}"#,
            "display_name is given twice",
        ),
        (
            r#"{"labels":{"a":"1","a":"2"}}"#,
            "labels has the key `a` twice",
        ),
        (
            r#"{"coordinates":{"latitude":48.5}}"#,
            "coordinates needs both",
        ),
        (r#"{"coordinates":{}}"#, ""),
        (
            r#"{"capacity":1.5}"#,
            "capacity must be a whole number, is `1.5`",
        ),
        (
            r#"{"displayName":["A"]}"#,
            "display_name must be text or a number",
        ),
        (r#"{"address":"Paris"}"#, "address must be an object"),
        (r#"{"id":"7"}"#, "use --id-from id"),
    ] {
        let parsed = json(line, &[], None);
        if reason.is_empty() {
            assert_eq!(parsed.unwrap().location.coordinates, None);
            continue;
        }
        let error = parsed.unwrap_err();
        assert!(
            error.contains(reason) && !error.contains("line 1"),
            "{error}"
        );
    }
}

#[test]
fn ndjson_derives_ids_from_any_key() {
    let by_number = json(r#"{"code":12,"displayName":"A"}"#, &[], Some("code")).unwrap();
    let by_text = json(r#"{"code":"12","displayName":"A"}"#, &[], Some("code")).unwrap();
    assert_eq!(by_number, by_text);
    assert_eq!(by_number.location.id, derive_id(namespace(None), "12"));
    let long = |digit| format!(r#"{{"code":1234567890123456789012{digit},"displayName":"A"}}"#);
    let ids = [1, 2].map(|digit| json(&long(digit), &[], Some("code")).unwrap().location.id);
    assert_ne!(ids[0], ids[1]);
    let by_field = json(r#"{"displayName":"A"}"#, &[], Some("displayName")).unwrap();
    assert_eq!(
        (by_field.location.id, by_field.location.display_name),
        (derive_id(namespace(None), "A"), "A".to_owned())
    );
    assert!(
        json(r#"{"displayName":"A"}"#, &[], Some("code"))
            .unwrap_err()
            .starts_with("code is")
    );
}

#[test]
fn json_keys_are_mapped_by_path() {
    let line = r#"{"name":"A","geo":{"lat":48.5,"lng":"2.3","x":1},"lines":["a","b"],"n":7,"tags":{"a":"1"}}"#;
    let parsed = json(
        line,
        &[
            ("display_name", "name"),
            ("coordinates.latitude", "geo.lat"),
            ("coordinates.longitude", "geo.lng"),
            ("address.address_lines", "lines.1"),
            ("address.address_lines", "lines.0"),
            ("address.address_lines", "\"c\""),
            ("address.postal_code", "n"),
            ("labels", "tags"),
            ("description", "absent"),
        ],
        None,
    )
    .unwrap();
    let location = parsed.location;
    assert_eq!(location.display_name, "A");
    assert_eq!(
        location.coordinates,
        Some(LatLng {
            latitude: 48.5,
            longitude: 2.3
        })
    );
    let address = location.address.unwrap();
    assert_eq!(address.address_lines, ["b", "a", "c"]);
    assert_eq!(address.postal_code, "7");
    assert_eq!(location.labels["a"], "1");
    assert!(parsed.given.has(&"description".parse().unwrap()));

    let mut keys = Keys::new(&mappings(&[("display_name", "name")]), rules(&[]), None);
    keys.parse(r#"{"name":"A","type":1,"city":"x","address":{"zip":1}}"#)
        .unwrap();
    let ignored: Vec<_> = keys.ignored.iter().map(String::as_str).collect();
    assert_eq!(ignored, ["address.zip", "city"]);
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
        .parse(&record(&[
            "Paris",
            "7",
            "Europe/Paris",
            "9",
            "48.8",
            "2.3",
            "red",
            "?",
        ]))
        .unwrap()
        .location;
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
    let parse = |cells: [&str; 6]| columns.parse(&record(&cells));
    assert_eq!(
        parse(["A", "LOCATION_TYPE_DELIVERY", "", "", "", "1 Main St"])
            .unwrap()
            .location
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
        columns.parse(&record(&["A"])).unwrap_err(),
        "has 1 field, the header has 6"
    );
    let not_utf8 = &records(b"\xff,storage,,,,\n")[0];
    assert!(
        columns
            .parse(not_utf8)
            .unwrap_err()
            .starts_with("display_name isn't UTF-8")
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
    let error = usage_error(&["Name", "type"], &[], None);
    assert!(
        error.contains("did you mean --map display_name=Name?"),
        "{error}"
    );
    let error = usage_error(&["Display Name", "display_name", "type"], &[], None);
    assert!(error.contains("both hold display_name"), "{error}");
    let error = usage_error(&["city name"], &[("display_name", "city_nam")], None);
    assert!(error.contains("did you mean `city name`?"), "{error}");
    let error = usage_error(&["display_name"], &[], None);
    assert!(error.contains("--set type=VALUE"), "{error}");
    let error = "adress.locality".parse::<Field>().unwrap_err();
    assert!(error.contains("address.locality"), "{error}");
}

#[test]
fn ids_depend_on_the_value_and_the_namespace_only() {
    let id = |cells: [&str; 3], name: Option<&str>| {
        let rules = RowRules::new(
            rules(&[("type", "storage")]).constants,
            NumberStyle::default(),
            namespace(name),
        )
        .unwrap();
        let header = names(&["id", "key", "display_name"]);
        let columns = Columns::new(&header, &[], rules, Some("key")).unwrap();
        columns.parse(&record(&cells)).map(|row| row.location.id)
    };
    assert_eq!(id(["1", "12", "A"], None), id(["2", " 12 ", "B"], None));
    assert_ne!(id(["1", "12", "A"], None), id(["1", "13", "A"], None));
    assert_ne!(id(["1", "12", "A"], None), id(["1", "12", "A"], Some("x")));
    assert_ne!(
        id(["1", "12", "A"], Some("y")),
        id(["1", "12", "A"], Some("x"))
    );
    // A literal, because it must never change: earlier imports have ids like it.
    assert_eq!(
        id(["", "12", "A"], None).unwrap(),
        "bfb79d32-a3d1-5d99-91a9-8c2595f00e1a"
    );
    assert!(
        id(["1", "", "A"], None)
            .unwrap_err()
            .starts_with("key is empty")
    );
}

#[test]
fn the_id_of_a_row_without_one_depends_on_line_content_and_owner() {
    let id = |name: &str, line, attempt| {
        let location = Location {
            display_name: name.to_owned(),
            ..Location::default()
        };
        row_id(Uuid::nil(), &location, line, attempt)
    };
    assert_eq!(id("A", 2, 0), id("A", 2, 0));
    assert_ne!(id("A", 2, 0), id("A", 3, 0));
    assert_ne!(id("A", 2, 0), id("B", 2, 0));
    assert_ne!(id("A", 2, 0), id("A", 2, 1));
}

#[test]
fn rows_are_compared_in_the_fields_that_the_file_has() {
    let header = [
        "display_name",
        "capacity",
        "state",
        "labels.a",
        "coordinates.latitude",
        "coordinates.longitude",
    ];
    let columns = columns(&header, &[], &[("type", "storage")]);
    let row = |cells: [&str; 6]| columns.parse(&record(&cells)).unwrap();
    let there = Location {
        id: "x".to_owned(),
        etag: "\"e\"".to_owned(),
        r#type: LocationType::Storage.into(),
        display_name: "A".to_owned(),
        capacity: 5,
        state: LocationState::Active.into(),
        description: "kept".to_owned(),
        labels: [("a", "1"), ("b", "2")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..Location::default()
    };
    for (cells, paths) in [
        (["A", "5", "", "1", "", ""], &[][..]),
        (["A", "", "active", "1", "", ""], &["capacity"]),
        (
            ["B", "5", "inactive", "", "0", "0"],
            &["display_name", "coordinates", "state", "labels"],
        ),
    ] {
        let Parsed {
            location, given, ..
        } = row(cells);
        let found = differences(&location, &given, &there).unwrap();
        let request = update(&location, &given, &there, &found, false);
        let mut mask = request.update_mask.unwrap().paths;
        let mut expected: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        mask.sort();
        expected.sort();
        assert_eq!(mask, expected);
        let sent = request.location.unwrap();
        assert_eq!((sent.id.as_str(), sent.etag.as_str()), ("x", "\"e\""));
        assert_eq!(
            sent.labels["b"], "2",
            "entries that the file doesn't have stay"
        );
    }
    let Parsed {
        location, given, ..
    } = row(["B", "", "", "1", "", ""]);
    let found = differences(&location, &given, &there).unwrap();
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "display_name is `B` in the file and `A` in the service",
            "capacity is `0` in the file and `5` in the service"
        ]
    );
}

#[test]
fn cells_are_read_as_spreadsheets_write_them() {
    let columns = columns(
        &[
            "Display Name",
            "TYPE",
            "Capacity",
            "address.region_code",
            "Address.PostalCode",
            "labels.a",
            "",
        ],
        &[
            ("address.address_lines", "TYPE"),
            ("address.address_lines", "\"x\""),
            ("address.address_lines", "capacity"),
        ],
        &[],
    );
    for cells in [
        " A , storage,\"1,234\", uk , 01067,\" b \",",
        "A,storage,1234.0,GB,01067,b",
        "A,storage,1 234,gb,\"01067 \",b,,,",
    ] {
        let location = columns
            .parse(&records(cells.as_bytes())[0])
            .unwrap()
            .location;
        let address = location.address.unwrap();
        assert_eq!(location.display_name, "A");
        assert_eq!(location.capacity, 1234);
        assert_eq!(
            (address.region_code.as_str(), address.postal_code.as_str()),
            ("GB", "01067")
        );
        assert_eq!(address.address_lines[..2], ["storage", "x"]);
        assert_eq!(location.labels["a"], "b");
    }
    let blank = &records(b", ,\t,,,,,")[0];
    assert!(columns.is_blank(blank) && columns.fits(blank));
    assert!(!columns.fits(&records(b"A,storage,1,GB,1,b,,x")[0]));
    assert!(!columns.fits(&records(b"A,storage,1,GB,1")[0]));
    assert_eq!(
        columns.unused(&names(&["x", "y"])).len(),
        0,
        "both columns are used"
    );
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
    if field.is_id() {
        return "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70".to_owned();
    }
    match field.kind() {
        Kind::String if field.name() == "region_code" => "FR".to_owned(),
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

    let mut encoded = Vec::new();
    for field in &fields {
        assert_eq!(field.to_string().parse::<Field>().as_ref(), Ok(field));
        let value = field.parse(&sample(field), NumberStyle::default()).unwrap();
        field.encode(&value, &mut encoded);
    }
    let location = Location::decode(&*encoded).unwrap();
    let empty = dynamic(&Location::default());
    for field in &fields {
        assert_ne!(field.get(&dynamic(&location)), field.get(&empty), "{field}");
    }
    let message = dynamic(&location);

    let ndjson = exported(Format::Ndjson, &location);
    let line = std::str::from_utf8(&ndjson).unwrap();
    let imported_json = json(line, &[], None).unwrap().location;

    // Each column under another name, so that only the mapping connects it with its field.
    let file = exported(Format::Csv, &location);
    let header: Vec<_> = header_of(&file)
        .iter()
        .map(|name| format!("x {name}"))
        .collect();
    let map: Vec<_> = fields
        .iter()
        .filter(|field| !field.is_output_only())
        .map(|field| Mapping {
            field: field.clone(),
            source: MappingSource::Column(format!("x {field}")),
        })
        .collect();
    let columns = Columns::new(&header, &map, rules(&[]), None).unwrap();
    let imported_csv = columns.parse(&records(&file)[1]).unwrap().location;
    for imported in [dynamic(&imported_csv), dynamic(&imported_json)] {
        for field in &fields {
            let expected = if field.is_output_only() {
                String::new()
            } else {
                field.get(&message)
            };
            assert_eq!(field.get(&imported), expected, "{field}");
        }
    }
}

#[test]
fn an_export_has_the_form_that_its_name_says() {
    for (arguments, expected) in [
        (&["a.csv.bz2"][..], "use .gz or .zst"),
        (&["a.txt"], "names no format"),
        (&["a.gz"], "names no format"),
        (&["a.xlsx"], "set --format csv or --format ndjson"),
        (&["a.csv", "--format", "ndjson"], "contradicts"),
        (&["a.ndjson", "--bom"], "are for CSV"),
        (&["a.ndjson", "--columns", "labels.a"], "use labels"),
    ] {
        let error = export_args(arguments).form().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{error}");
    }
    for (arguments, format, compression) in [
        (&["a.csv"][..], Format::Csv, None),
        (&["a.txt", "--format", "csv"], Format::Csv, None),
        (&["-"], Format::Ndjson, None),
        (&["/dev/null"], Format::Ndjson, None),
        (&["a.CSV.GZ"], Format::Csv, Some(Compression::Gzip)),
        (&["a.ndjson.zst"], Format::Ndjson, Some(Compression::Zstd)),
    ] {
        let form = export_args(arguments).form().unwrap();
        assert_eq!((form.format, form.compression), (format, compression));
    }
    assert_eq!(export_args(&["a.tsv"]).form().unwrap().delimiter, b'\t');
}

#[test]
fn columns_are_chosen_and_formulas_escaped() {
    let location = Location {
        display_name: "=1+1".to_owned(),
        address: Some(Address {
            locality: "@x".to_owned(),
            ..Address::default()
        }),
        coordinates: Some(LatLng {
            latitude: -1.0,
            longitude: 0.0,
        }),
        ..Location::default()
    };
    let encode = |arguments: &[&str]| {
        let args = export_args(arguments);
        let mut encoder = args.encoder(args.form().unwrap());
        let mut out = encoder.header();
        encoder.append(&location, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), encoder.formulas())
    };
    let columns = "--columns=address.locality,coordinates.latitude,display_name";
    assert_eq!(
        encode(&["a.csv", columns]),
        (
            "address.locality,coordinates.latitude,display_name\n@x,-1,=1+1\n".to_owned(),
            2
        )
    );
    assert_eq!(
        encode(&["a.csv", columns, "--escape-formulas", "--bom"]),
        (
            "\u{feff}address.locality,coordinates.latitude,display_name\n'@x,-1,'=1+1\n".to_owned(),
            0
        )
    );
    assert_eq!(
        encode(&["a.ndjson", columns]).0,
        "{\"displayName\":\"=1+1\",\"address\":{\"locality\":\"@x\"},\"coordinates\":{\"latitude\":-1}}\n"
    );
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
