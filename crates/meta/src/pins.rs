//! Pins in block stores: read now and then for the machine, made and removed for services of this process.
//!
//! A pin is made in the state first and then in the store, and removed the other way round: whatever is lost in between,
//! one of the two holds what is pinned.

use crate::collect::Collector;
use crate::core::Core;
use crate::machine::{Event, Machine, PinsRead};
use bytes::Bytes;
use chronofs_blocks::Pin;
use chronofs_blocks::pin::parse_pin_name;
use chronofs_engine::EngineError;
use chronofs_namespace::SystemError;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// The longest until a volume that is new is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The pins of a volume among all that lies where pins lie, or why that is not known.
fn pins_of(volume: Uuid, found: &[(String, Bytes)]) -> Result<Vec<Pin>, String> {
    let mut pins = Vec::new();
    for (name, bytes) in found {
        let Some((of, _)) = parse_pin_name(name) else {
            return Err(format!(
                "{name} in the block store is not the name of a pin, and nothing else may lie there; if it is not of \
                 a newer chronofs, move it elsewhere"
            ));
        };
        if of == volume {
            pins.push(Pin::decode(name, bytes).map_err(|error| error.to_string())?);
        }
    }
    Ok(pins)
}

impl Collector {
    /// Reads the pins of every block store again and again: as often as that three readings in a row may fail before
    /// what is known is too old, and sooner after a failure.
    pub(crate) async fn watch_pins(self) {
        let mut due: HashMap<Uuid, Instant> = HashMap::new();
        loop {
            let asked = self.ask(|core, _| core.machine.config().pins_age_ms).await;
            let Some(age_ms) = asked else { return };
            let every = Duration::from_millis(u64::from(age_ms)) / 4;
            for (store, volumes) in self.stores.each() {
                let now = Instant::now();
                if volumes.iter().all(|volume| due.get(volume).is_some_and(|due| *due > now)) {
                    continue;
                }
                let Some(began_ns) = self.ask(|_, steady_ns| steady_ns).await else { return };
                let read = store.pins().await.map_err(|error| error.to_string());
                for volume in volumes {
                    let found = match &read {
                        Ok(found) => pins_of(volume, found),
                        Err(error) => Err(format!("its pins cannot be read: {error}")),
                    };
                    let wait = if found.is_ok() { every } else { every / 5 };
                    due.insert(volume, Instant::now() + wait);
                    self.send(Event::Pins(Box::new(PinsRead { volume, began_ns, found }))).await;
                }
            }
            tokio::time::sleep(LOOK_AGAIN.min(every / 5)).await;
        }
    }

    /// Has the instants of `pin` kept, in the state and in the block store. When it returns, both are durable. Doing it
    /// again is no error.
    pub async fn pin(&self, pin: &Pin) -> Result<(), String> {
        let store = self.stores.of(pin.volume).ok_or("the volume's block store is not in reach")?;
        let kept = pin.clone();
        self.durably(move |machine, group| {
            let note = format!("{}: {}", kept.owner, kept.reason);
            let (named, span) = ((kept.volume, kept.id), (kept.from, kept.to));
            machine.keep_instants(group, named, span, kept.ends, &note)
        })
        .await?;
        store.put_pin(pin).await.map_err(|error| error.to_string())
    }

    /// Nobody needs the pin any more. Doing it again is no error.
    pub async fn unpin(&self, volume: Uuid, id: Uuid) -> Result<(), String> {
        let store = self.stores.of(volume).ok_or("the volume's block store is not in reach")?;
        store.remove_pin(volume, id).await.map_err(|error| error.to_string())?;
        self.durably(move |machine, group| machine.release_instants(group, volume, id)).await
    }

    async fn durably(
        &self,
        mut change: impl FnMut(
            &mut Machine,
            &mut crate::machine::Group,
        ) -> Result<Result<(), SystemError>, EngineError>
        + Send
        + 'static,
    ) -> Result<(), String> {
        let done = self.ask_at(move |core: &mut Core, now| {
            let mut said = Ok(());
            core.decide(now, |machine, group| {
                said = change(machine, group)?;
                Ok(())
            })?;
            core.engine.sync()?;
            Ok(said)
        });
        let done: Option<Result<Result<(), SystemError>, EngineError>> = done.await;
        let said = done.ok_or("the server stops")?.map_err(|error| error.to_string())?;
        said.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Version;

    fn pin(volume: u128, id: u128) -> (String, Bytes) {
        let (volume, id) = (Uuid::from_u128(volume), Uuid::from_u128(id));
        let pin = Pin::new(volume, 0, id, Version(1), Version(2));
        (pin.name(), pin.encode().unwrap())
    }

    #[test]
    fn whatever_is_not_a_pin_is_in_the_way_of_its_volume_or_of_all() {
        let of = |found: &[(String, Bytes)]| pins_of(Uuid::from_u128(1), found).map(|pins| pins.len());
        assert_eq!(of(&[]), Ok(0));
        assert_eq!(of(&[pin(1, 1), pin(2, 1), pin(1, 2)]), Ok(2));
        let mut cut = pin(1, 3);
        cut.1.truncate(20);
        assert!(of(&[pin(1, 1), cut.clone()]).unwrap_err().contains(&cut.0));
        cut.0 = pin(2, 3).0;
        assert_eq!(of(&[pin(1, 1), cut]), Ok(1), "it is another volume's");
        let stranger = ("pins/letter".to_owned(), Bytes::from_static(b"dear"));
        assert!(of(&[stranger]).unwrap_err().contains("pins/letter"));
    }
}
