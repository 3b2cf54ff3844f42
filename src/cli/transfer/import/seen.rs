//! The ids of an import, to find repeated ones.

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::FileExt as _,
};

use uuid::Uuid;

/// The number of ids in memory at which they are moved to the temporary file.
const MAX_IN_MEMORY: usize = 128 * 1024;

/// The size of an id and its line in the temporary file.
const ENTRY_BYTES: usize = 24;

/// Bits of a filter for each id. Of ids that aren't in the run, one in 400 passes.
const BITS_PER_ID: usize = 16;

/// Bits of a filter that an id sets.
const BITS_SET: u64 = 4;

/// The ids that were read, and the line of each. Most of those of a large file are in a temporary
/// file without a name, which ends with the process.
#[derive(Debug, Default)]
pub struct Seen {
    recent: HashMap<u128, u64>,
    runs: Vec<SortedRun>,
    file: Option<File>,
}

/// Ids in the temporary file, in order.
#[derive(Debug)]
struct SortedRun {
    /// The index of the first entry in the file.
    first: u64,
    /// The number of entries.
    length: u64,
    /// A Bloom filter: without all of its bits, an id isn't in the run.
    filter: Vec<u64>,
}

impl Seen {
    /// Adds an id in its canonical form. If an earlier row has it, returns the line of that row.
    pub fn add(&mut self, id: &str, line: u64) -> io::Result<Option<u64>> {
        let Ok(id) = Uuid::try_parse(id) else {
            return Ok(None);
        };
        let id = id.as_u128();
        if let Some(first) = self.recent.get(&id) {
            return Ok(Some(*first));
        }
        if let Some(file) = &self.file {
            for run in &self.runs {
                if let Some(first) = run.find(id, file)? {
                    return Ok(Some(first));
                }
            }
        }
        self.recent.insert(id, line);
        if self.recent.len() >= MAX_IN_MEMORY {
            self.spill()?;
        }
        Ok(None)
    }

    /// Moves the ids in memory to the file.
    fn spill(&mut self) -> io::Result<()> {
        let mut entries: Vec<_> = self.recent.drain().collect();
        entries.sort_unstable();
        let mut run = SortedRun {
            first: self.runs.iter().map(|run| run.length).sum(),
            length: entries.len() as u64,
            filter: vec![0; entries.len() * BITS_PER_ID / 64],
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(unnamed_file()?),
        };
        let mut file = BufWriter::new(file);
        for (id, line) in entries {
            file.write_all(&id.to_be_bytes())?;
            file.write_all(&line.to_be_bytes())?;
            for (word, bit) in run.bits(id) {
                run.filter[word] |= bit;
            }
        }
        file.flush()?;
        self.runs.push(run);
        Ok(())
    }
}

/// A temporary file that is removed when it is closed.
fn unnamed_file() -> io::Result<File> {
    let name = format!("location-service-{}", Uuid::new_v4());
    let path = env::temp_dir().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

impl SortedRun {
    /// The bits of an id in the filter, each as the index of its word and its value.
    fn bits(&self, id: u128) -> impl Iterator<Item = (usize, u64)> + use<> {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        // Ids may be anything, also consecutive.
        #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
        let (high, low) = ((id >> 64) as u64, id as u64);
        let mut mixed = high.wrapping_mul(ODD).rotate_left(32) ^ low;
        mixed = mixed.wrapping_mul(ODD);
        mixed = (mixed ^ (mixed >> 32)).wrapping_mul(ODD);
        let (first, step) = (mixed >> 16, (mixed.wrapping_mul(ODD) >> 16) | 1);
        let length = self.filter.len() as u64 * 64;
        (0..BITS_SET).map(move |index| {
            let bit = first.wrapping_add(index.wrapping_mul(step)) % length;
            let word = usize::try_from(bit / 64).unwrap_or_default();
            (word, 1 << (bit % 64))
        })
    }

    fn find(&self, id: u128, file: &File) -> io::Result<Option<u64>> {
        if !self
            .bits(id)
            .all(|(word, bit)| self.filter[word] & bit != 0)
        {
            return Ok(None);
        }
        let (mut low, mut high) = (0, self.length);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut entry = [0; ENTRY_BYTES];
            file.read_exact_at(&mut entry, (self.first + middle) * ENTRY_BYTES as u64)?;
            let (found, line) = entry.split_at(16);
            let found = u128::from_be_bytes(found.try_into().unwrap_or_default());
            match found.cmp(&id) {
                std::cmp::Ordering::Equal => {
                    return Ok(Some(u64::from_be_bytes(
                        line.try_into().unwrap_or_default(),
                    )));
                }
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_whether_it_is_in_memory_or_in_the_file() {
        let mut seen = Seen::default();
        let count = 2 * MAX_IN_MEMORY as u64 + 1_000;
        // Consecutive ones and derived ones.
        let id = |number: u64| match number % 2 {
            0 => Uuid::from_u128(u128::from(number)),
            _ => Uuid::from_u128(u128::from(number) << 90),
        };
        let add = |seen: &mut Seen, number, line| seen.add(&id(number).to_string(), line).unwrap();
        for number in 0..count {
            assert_eq!(add(&mut seen, number, number), None, "{number}");
        }
        assert_eq!(seen.runs.len(), 2);
        for number in (0..count).step_by(997).chain([count - 1]) {
            assert_eq!(add(&mut seen, number, 0), Some(number));
        }
        let passed = (count..count + 20_000)
            .filter(|number| {
                let id = id(*number).as_u128();
                let run = &seen.runs[0];
                run.bits(id).all(|(word, bit)| run.filter[word] & bit != 0)
            })
            .count();
        assert!(passed < 400, "{passed} of 20,000 ids pass the filter");
    }
}
