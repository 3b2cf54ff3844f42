//! `location.v1.LatLng`.

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, double, skip_field},
};

const LATITUDE: u32 = 1;
const LONGITUDE: u32 = 2;

/// A position in WGS 84.
///
/// It isn't generated, because prost omits negative zero. Protocol Buffers omits only positive zero,
/// which is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatLng {
    /// Degrees north, -90 to 90.
    pub latitude: f64,
    /// Degrees east, -180 to 180.
    pub longitude: f64,
}

impl LatLng {
    /// The fields that are encoded.
    fn fields(&self) -> impl Iterator<Item = (u32, f64)> {
        [(LATITUDE, self.latitude), (LONGITUDE, self.longitude)]
            .into_iter()
            .filter(|(_, degrees)| degrees.to_bits() != 0)
    }
}

impl Message for LatLng {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        for (tag, degrees) in self.fields() {
            double::encode(tag, &degrees, buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let (name, degrees) = match tag {
            LATITUDE => ("latitude", &mut self.latitude),
            LONGITUDE => ("longitude", &mut self.longitude),
            _ => return skip_field(wire_type, tag, buffer, context),
        };
        double::merge(wire_type, degrees, buffer, context).map_err(|mut error| {
            error.push("LatLng", name);
            error
        })
    }

    fn encoded_len(&self) -> usize {
        self.fields()
            .map(|(tag, degrees)| double::encoded_len(tag, &degrees))
            .sum()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_double_is_kept_and_only_positive_zero_is_omitted() {
        for degrees in [
            0.0,
            -0.0,
            5e-324,
            -2.225_073_858_507_201e-308,
            40.631_900_787_353_516,
            -180.0,
        ] {
            let position = LatLng {
                latitude: degrees,
                longitude: -degrees,
            };
            let bytes = position.encode_to_vec();
            let zeros = [degrees, -degrees].map(f64::to_bits).into_iter();
            let omitted = zeros.filter(|bits| *bits == 0).count();
            assert_eq!(bytes.len(), 9 * (2 - omitted), "{degrees}");
            let back = LatLng::decode(&*bytes).expect("a position");
            assert_eq!(back.latitude.to_bits(), degrees.to_bits());
            assert_eq!(back.longitude.to_bits(), (-degrees).to_bits());
        }
        // Unknown fields are skipped; the latter of two values counts.
        let bytes = [
            &[0x18, 1, 9][..],
            &1.5_f64.to_le_bytes(),
            &[9],
            &2.5_f64.to_le_bytes(),
        ];
        let position = LatLng::decode(&*bytes.concat()).expect("a position");
        assert_eq!((position.latitude, position.longitude), (2.5, 0.0));
        let error = LatLng::decode(&[0x08, 1][..]).expect_err("not a double");
        assert!(error.to_string().contains("LatLng.latitude"), "{error}");
    }
}
