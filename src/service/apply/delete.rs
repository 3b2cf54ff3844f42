//! Deletions.

use std::collections::HashMap;

use super::{super::call::Deletion, Applied, Rejected, Statements, distinct};
use crate::{error::Error, model::Image};

impl Statements<'_> {
    /// Deletes locations in order, all or none.
    pub(super) async fn delete(&mut self, deletions: &[Deletion]) -> Result<Applied, Rejected> {
        let ids = distinct(deletions.iter().map(|deletion| deletion.id));
        let locked = self.transaction.lock_images(&ids).await?;
        let mut present: HashMap<_, _> = locked
            .into_iter()
            .filter(|(image, _)| self.sees(&image.owner))
            .map(|(image, etag)| (image.id, (image, etag)))
            .collect();
        let mut deleted: Vec<Image> = Vec::new();
        let (mut missing, mut stale) = (Vec::new(), Vec::new());
        for (index, deletion) in deletions.iter().enumerate() {
            let Deletion {
                id,
                etag,
                allow_missing,
            } = deletion;
            match present.remove(id) {
                None if *allow_missing => {}
                None => missing.push((index, *id)),
                Some((_, current)) if etag.as_ref().is_some_and(|etag| *etag != current) => {
                    stale.push((index, *id));
                }
                Some((image, _)) => deleted.push(image),
            }
        }
        self.reject(Error::NotFound, missing).await?;
        self.reject(Error::EtagMismatch, stale).await?;
        let mut images = self.transaction.take_previous_images(&ids).await?;
        // The response reveals that the missing locations were deleted.
        let is_deleted = |image: &Image| deleted.iter().any(|other| other.id == image.id);
        let revealed = images
            .iter()
            .filter(|image| !is_deleted(image))
            .cloned()
            .collect();
        if !deleted.is_empty() {
            let ids: Vec<_> = deleted.iter().map(|image| image.id).collect();
            self.transaction.delete(&ids).await?;
            // The records outlive the write, because a deletion may be retried.
            self.transaction.record_previous_images(&deleted).await?;
            images.extend(deleted);
        }
        Ok(Applied {
            images,
            revealed,
            ..Applied::default()
        })
    }
}
