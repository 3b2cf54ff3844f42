//! The names of locations and of their states.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A location: `c3.17` is the 17th of client 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The client that writes it.
    pub client: u16,
    /// Its number among that client's locations.
    pub serial: u32,
}

/// A state of a location: `c3.17.2` is the one that its third write left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    /// The location.
    pub name: Name,
    /// The write.
    pub version: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}.{}", self.client, self.serial)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.version)
    }
}

/// The text isn't a name like `c3.17` or a label like `c3.17.2`.
#[derive(Debug)]
pub struct NotALabel;

impl fmt::Display for NotALabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a name like c3.17, or a label like c3.17.2")
    }
}

impl FromStr for Name {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        let (client, serial) = text
            .strip_prefix('c')
            .and_then(|text| text.split_once('.'))
            .ok_or(NotALabel)?;
        Ok(Self {
            client: client.parse().map_err(|_| NotALabel)?,
            serial: serial.parse().map_err(|_| NotALabel)?,
        })
    }
}

impl FromStr for Label {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        let (name, version) = text.rsplit_once('.').ok_or(NotALabel)?;
        Ok(Self {
            name: name.parse()?,
            version: version.parse().map_err(|_| NotALabel)?,
        })
    }
}

/// Serializes a type as its text.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(Name);
as_text!(Label);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_parses_its_own_text() {
        let name = Name {
            client: 3,
            serial: 17,
        };
        let label = Label { name, version: 2 };
        assert_eq!(label.to_string(), "c3.17.2");
        assert_eq!("c3.17.2".parse::<Label>().ok(), Some(label));
        for text in ["", "c3", "c3.17", "3.17.2", "c3.17.x", "c3.17.2.1"] {
            assert!(text.parse::<Label>().is_err(), "{text}");
        }
    }
}
