//! What is said of the collection, for people and for the command line: the JSON of `/gc`.

use crate::machine::{CollectionShown, LeavingShown, PackingShown};
use chronofs_namespace::rows::Sum;
use serde::{Deserialize, Serialize};

/// What `/gc` says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcStatus {
    /// The volumes.
    pub volumes: Vec<VolumeCollection>,
    /// The block stores, as they were found when they were last looked through.
    pub stores: Vec<StoreListing>,
    /// How often all stores were looked through.
    pub looks: u64,
    /// How often that was asked for or begun.
    pub asked: u64,
    /// The admin server has not said lately that this server owns the metadata: nothing is condemned or deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
}

/// A volume in [`GcStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeCollection {
    /// Its name.
    pub name: String,
    /// Objects and small slices that rows name, live or past.
    pub held: Sum,
    /// Of them slices whose bytes are still in the metadata: they wait to be packed.
    #[serde(default)]
    pub to_pack: Sum,
    /// Of these bytes so many are needed by what is there now. Only after a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_bytes: Option<u64>,
    /// What the past costs, as it was when all rows were read last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past: Option<PastCost>,
    /// Named by none, and kept for a while.
    pub retired: Sum,
    /// Of them those that could go now.
    pub due: Sum,
    /// On their way out.
    pub condemned: Sum,
    /// How it goes.
    #[serde(flatten)]
    pub shown: CollectionShown,
    /// How the packing of small slices goes.
    #[serde(default)]
    pub packing: PackingShown,
    /// Of a deleted volume, how far it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingShown>,
}

/// What is held beyond what is there now needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PastCost {
    /// Held bytes that no live row needs: the past, and what lies with needed slices in one object and is not repacked.
    pub bytes: u64,
    /// When that was counted, as an instant.
    pub at: String,
}

/// A block store as it was found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreListing {
    /// The volumes whose objects lie there.
    pub volumes: Vec<String>,
    /// When the look ended, as an instant.
    pub at: String,
    /// What was there for these volumes.
    pub found: Sum,
    /// Of it: granted to a session, which is over or done with it, and named by nothing. It goes.
    pub garbage: Sum,
    /// Of it: granted to a session that may still publish it.
    pub open: Sum,
    /// Of it: explained by nothing, and names that are no object's. It stays.
    pub quarantined: Sum,
    /// How many of the quarantined are objects of these volumes. While there are any, no garbage goes.
    #[serde(default)]
    pub unexplained: u64,
    /// Some of the quarantined, with the reason.
    pub examples: Vec<(String, String)>,
    /// Of these volumes the garbage is so much, compared with what they hold, that it waits for a word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub braked: Vec<String>,
    /// Objects of other volumes.
    pub others: Sum,
    /// Why the look ended early.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_volume_reads_back_with_all_there_is_to_be_said() {
        let sum = Sum { count: 1, bytes: 2 };
        let said = VolumeCollection {
            name: "v".to_owned(),
            held: sum,
            to_pack: sum,
            live_bytes: Some(3),
            past: Some(PastCost { bytes: 4, at: "1970-01-01T00:00:00Z".to_owned() }),
            retired: sum,
            due: sum,
            condemned: sum,
            shown: CollectionShown {
                held_at: Some("1970-01-01T00:00:01Z".to_owned()),
                problem: Some("why".to_owned()),
                waits: Some("for what".to_owned()),
                ..CollectionShown::default()
            },
            packing: PackingShown::default(),
            leaving: None,
        };
        let json = serde_json::to_string(&said).unwrap();
        let back: VolumeCollection = serde_json::from_str(&json).unwrap();
        assert_eq!((back.held.bytes, &back.shown), (2, &said.shown));
    }
}
