//! A member at work: carries out what [`Member`] decides, with threads, folders and programs. What is special about a server
//! is behind [`Host`]; the server brings polls to the coordinator and orders back.
//!
//! Images lie in `FOLDER/NUMBER/ROLE`, on the server's own volume. What an earlier life left there goes at the start: the
//! epoch was another one, so nobody asks for it any more.

use crate::code::SnapshotCode;
use crate::error::Error;
use crate::label::Label;
use crate::name::Role;
use crate::protocol::{
    Attempt, Cut, Do, Ended, Fault, Held, Intent, Member, Order, Poll, Step, Told, role_code,
};
use crate::run::{Abort, Guard, Invocation, Limits, Surroundings, Whereabouts, run};
use crate::tree::{Kind, list_tree, sum_of};
use crate::whitelist::Whitelist;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Checksums of files that never change, so that each is read once.
const SUMS: &str = "sums.json";
/// Lines of a program's output that are told when it failed.
const LINES_TOLD: usize = 10;

/// What stands in the place of a program when members store their images by themselves. It is no absolute path, so no
/// whitelist has it.
pub const BACKUP: &str = "chronofs:backup";

/// What an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Imaged {
    /// Up to which commit it goes.
    pub version: Option<u64>,
    /// Where the log was ended.
    pub ended: Option<Ended>,
}

/// What a server does for a snapshot. Each call blocks.
pub trait Host: Send + Sync + 'static {
    /// Whether it can take part. What is made durable here keeps, from now on, what a set of this moment or later needs.
    fn ready(&self, intent: &Intent) -> Result<(), Fault>;

    /// From now on no part of the log goes.
    fn hold(&self, attempt: &Attempt) -> Result<(), Fault>;

    /// The log may go on forgetting. Also called for attempts that hold nothing.
    fn let_go(&self, attempt: &Attempt);

    /// Makes the folder `place` with the image of a role.
    fn image(&self, intent: &Intent, role: Role, place: &Path) -> Result<Imaged, Fault>;

    /// The cut is known: from now on just what this set needs is kept, durably.
    fn keep(&self, intent: &Intent, cut: Option<Cut>) -> Result<(), Fault>;

    /// Stores the image of a role by itself: what [`BACKUP`] stands for. `stop` says that nobody wants it any more.
    fn store(
        &self,
        _: &Intent,
        role: Role,
        _image: &Path,
        _stop: &dyn Fn() -> bool,
    ) -> Result<String, Fault> {
        Err(failed(role, "this server stores no backups: is it of an older version?"))
    }

    /// The set is complete: its images can be relied upon.
    fn complete(&self, _attempt: &Attempt) {}

    /// Nothing need be kept for this attempt any more. Done again if it could not be done: see [`Host::kept`].
    fn release(&self, attempt: &Attempt);

    /// For which attempts something is kept, or why that cannot be known.
    fn kept(&self) -> Result<Vec<Attempt>, String>;

    /// Of what is kept for an attempt something could not be let go a moment ago.
    fn rests(&self, _attempt: &Attempt) -> bool {
        false
    }

    /// Who reads what is kept for which snapshot; none while that is not known.
    fn readers(&self) -> Option<BTreeMap<String, Vec<String>>> {
        Some(BTreeMap::new())
    }
}

/// What an [`Agent`] has to know of its server.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Id of the node.
    pub node: String,
    /// Where images are made.
    pub folder: PathBuf,
    /// What may run.
    pub whitelist: Whitelist,
    /// Version of the server.
    pub version: String,
    /// Where the server stands.
    pub whereabouts: Whereabouts,
    /// How the guards of programs are started.
    pub guard: Guard,
}

/// See the module.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    setup: Setup,
    host: Box<dyn Host>,
    /// Called when there is something to say.
    wake: Box<dyn Fn() + Send + Sync>,
    begun: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    member: Member,
    /// Programs that run, by attempt.
    programs: BTreeMap<(u64, Role), Abort>,
    /// Attempts that are being taken away. Whether that was asked for again since it began, and whether with what is kept.
    going: BTreeMap<u64, Option<bool>>,
    complete: BTreeSet<Attempt>,
    /// The server stops: what is kept stays.
    stopping: bool,
    versions: BTreeMap<(u64, Role), u64>,
}

impl Agent {
    /// A member that has just started.
    pub fn new(
        setup: Setup,
        epoch: u64,
        host: impl Host,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<Agent, Error> {
        let folder = &setup.folder;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(Error::io("make folder", folder))?;
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let path = entry.map_err(Error::io("list", folder))?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path)
                    .map_err(Error::io("remove what was left of a snapshot in", &path))?;
            }
        }
        let state = State {
            member: Member::new(epoch),
            programs: BTreeMap::new(),
            going: BTreeMap::new(),
            complete: BTreeSet::new(),
            stopping: false,
            versions: BTreeMap::new(),
        };
        Ok(Agent(Arc::new(Inner {
            setup,
            host: Box::new(host),
            wake: Box::new(wake),
            begun: Instant::now(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })))
    }

    /// It is a member under this epoch now.
    pub fn set_epoch(&self, epoch: u64) {
        let todo = self.lock().member.set_epoch(epoch);
        self.carry_out(todo);
    }

    /// What to ask the coordinator with. It blocks. A server that cannot know what it keeps must not say that it is nothing,
    /// so it does not ask.
    pub fn poll(&self) -> Result<Poll, String> {
        let (kept, readers) = (self.0.host.kept()?, self.0.host.readers());
        let state = self.lock();
        let mut holding: BTreeSet<Attempt> = kept.into_iter().collect();
        holding.extend(state.member.attempt().cloned());
        let held = |attempt: Attempt| {
            let (complete, resting) = (state.complete.contains(&attempt), self.0.host.rests(&attempt));
            Held { attempt, complete, resting }
        };
        Ok(Poll {
            node: self.0.setup.node.clone(),
            epoch: state.member.epoch(),
            holding: holding.into_iter().map(held).collect(),
            doing: state.member.doing(),
            said: state.member.said(),
            readers,
        })
    }

    /// What the coordinator answered.
    pub fn orders(&self, orders: &[Order]) {
        for order in orders {
            let now_ms = self.now_ms();
            let (todo, news) = {
                let mut state = self.lock();
                let before = state.member.said().len();
                let todo = state.member.order(now_ms, order);
                (todo, state.member.said().len() > before)
            };
            self.carry_out(todo);
            if news {
                (self.0.wake)();
            }
        }
    }

    /// Looks at the clock: to be called every second or so.
    pub fn tick(&self) {
        let now_ms = self.now_ms();
        let todo = self.lock().member.tick(now_ms);
        self.carry_out(todo);
    }

    /// Ends programs and lets go: the server stops. What is kept for a set stays until the next start hears what became of
    /// the set: without this member's steps, which may all be said, others may complete it.
    pub fn stop(&self) {
        let todo = {
            let mut state = self.lock();
            state.stopping = true;
            state.member.set_epoch(u64::MAX)
        };
        self.carry_out(todo);
        let state = self.lock();
        let waited = self.0.changed.wait_timeout_while(state, Duration::from_secs(20), |state| {
            !state.programs.is_empty() || !state.going.is_empty()
        });
        drop(waited);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn carry_out(&self, todo: Vec<Do>) {
        for what in todo {
            match what {
                Do::Begin(intent, step) => self.in_thread(move |agent| agent.begin(&intent, step)),
                Do::LetGo(attempt) => self.0.host.let_go(&attempt),
                Do::Keep(attempt) => {
                    self.0.host.complete(&attempt);
                    self.lock().complete.insert(attempt.clone());
                    self.take_away(attempt, false);
                }
                Do::Leave(attempt) => self.take_away(attempt, false),
                Do::Discard(attempt) => self.take_away(attempt, true),
            }
        }
    }

    fn in_thread(&self, work: impl FnOnce(Agent) + Send + 'static) {
        let agent = self.clone();
        // Without a thread nothing is said, and the coordinator gives the attempt up in time.
        let spawned = std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || work(agent));
        drop(spawned);
    }

    fn begin(&self, intent: &Intent, step: Step) {
        let attempt = &intent.attempt;
        let end = self.step(intent, step);
        let now_ms = self.now_ms();
        let todo = self.lock().member.done(now_ms, attempt, step, end);
        self.carry_out(todo);
        (self.0.wake)();
    }

    fn step(&self, intent: &Intent, step: Step) -> Result<Told, Fault> {
        let attempt = &intent.attempt;
        match step {
            Step::Ready => {
                if intent.program != BACKUP {
                    self.program(intent)?;
                }
                self.0.host.ready(intent)?;
            }
            Step::Hold => self.0.host.hold(attempt)?,
            Step::Image(role) => {
                let place = self.place(attempt, role);
                let folder = place.parent().unwrap_or(&place);
                let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(|error| {
                    failed(role, &format!("cannot make folder {}: {error}", folder.display()))
                })?;
                let Imaged { version, ended } = self.0.host.image(intent, role, &place)?;
                if let Some(version) = version {
                    self.lock().versions.insert((attempt.number, role), version);
                }
                return Ok(Told { version, ended, ..Told::default() });
            }
            // Decided by the member alone.
            Step::Release => {}
            Step::Label => return self.label(intent),
            Step::Run(role) => return self.run(intent, role),
        }
        Ok(Told::default())
    }

    /// The program, if this machine lets it run.
    fn program(&self, intent: &Intent) -> Result<crate::whitelist::Program, Fault> {
        let user = rustix::process::geteuid().as_raw();
        let checked = self.0.setup.whitelist.check(Path::new(&intent.program), user);
        checked.map_err(|error| Fault { code: error.code(), why: error.to_string() })
    }

    fn place(&self, attempt: &Attempt, role: Role) -> PathBuf {
        self.0.setup.folder.join(attempt.number.to_string()).join(role.as_str())
    }

    fn label(&self, intent: &Intent) -> Result<Told, Fault> {
        let attempt = &intent.attempt;
        let node = intent.node(&self.0.setup.node).ok_or_else(|| Fault {
            code: SnapshotCode::Unknown,
            why: "the intent does not name this server".to_owned(),
        })?;
        let version = |role: Role| self.lock().versions.get(&(attempt.number, role)).copied();
        let cut = version(Role::Tlog).map(|cut| Cut { store: version(Role::Storage).unwrap_or(cut), cut });
        self.0.host.keep(intent, cut)?;
        let (mut bytes, mut labels) = (0, BTreeMap::new());
        let mut sums = Sums::read(&self.0.setup.folder.join(SUMS));
        for role in &node.roles {
            let place = self.place(attempt, *role);
            let mut label =
                Label::new(intent.cluster.clone(), attempt.clone(), intent.nodes.clone(), node, *role);
            label.cut = cut;
            let labelled = sums.files(&place).and_then(|files| {
                label.files = files;
                label.write(&place)
            });
            let sum = labelled.map_err(|error| failed(*role, &error.to_string()))?;
            labels.insert(*role, sum);
            bytes += label.bytes();
        }
        sums.write();
        Ok(Told { bytes: Some(bytes), labels, ..Told::default() })
    }

    fn run(&self, intent: &Intent, role: Role) -> Result<Told, Fault> {
        let attempt = &intent.attempt;
        let program = match intent.program.as_str() {
            BACKUP => None,
            _ => Some(self.program(intent)?),
        };
        let abort = Abort::new().map_err(|error| failed(role, &error.to_string()))?;
        {
            let mut state = self.lock();
            // It may have been taken back before this thread came here.
            if state.member.attempt() != Some(attempt) {
                return Err(failed(role, "it was aborted before its program ran"));
            }
            state.programs.insert((attempt.number, role), abort.clone());
        }
        let ended = match program {
            Some(program) => self.run_program(intent, role, program, &abort),
            None => {
                let stop = || abort.is_pulled();
                let stored = self.0.host.store(intent, role, &self.place(attempt, role), &stop);
                stored.map(|note| Told { note, ..Told::default() })
            }
        };
        self.lock().programs.remove(&(attempt.number, role));
        self.0.changed.notify_all();
        ended
    }

    fn run_program(
        &self,
        intent: &Intent,
        role: Role,
        program: crate::whitelist::Program,
        abort: &Abort,
    ) -> Result<Told, Fault> {
        let attempt = &intent.attempt;
        let node = intent.node(&self.0.setup.node);
        let whereabouts = &self.0.setup.whereabouts;
        let limits = Limits { run: Duration::from_millis(intent.run_ms), ..Limits::default() };
        let surroundings = Surroundings {
            attempt: Some(attempt.number.to_string()),
            cluster_id: Some(intent.cluster.clone()),
            node_id: Some(self.0.setup.node.clone()),
            address: node.map(|node| node.address.clone()),
            epoch: node.map(|node| node.epoch.to_string()),
            deadline: (SystemTime::now() + limits.run)
                .duration_since(UNIX_EPOCH)
                .ok()
                .map(|until| until.as_secs().to_string()),
            locality: whereabouts.locality_text(),
            cluster_file: whereabouts.cluster_file.as_ref().map(|path| path.to_string_lossy().into_owned()),
        };
        let call = Invocation {
            program,
            arguments: intent.arguments.iter().map(Into::into).collect(),
            path: self.place(attempt, role),
            version: self.0.setup.version.clone(),
            role,
            uid: attempt.uid.clone(),
            surroundings,
            guard: self.0.setup.guard.clone(),
        };
        let report = run(&call, &limits, abort);
        match report.succeeded() {
            true => Ok(Told { note: report.end.to_string(), ..Told::default() }),
            false => {
                let said = report.output.last_lines(LINES_TOLD).join("\n");
                let said = if said.is_empty() { String::new() } else { format!("; it said:\n{said}") };
                Err(failed(role, &format!("{} {}{said}", intent.program, report.end)))
            }
        }
    }

    /// Ends what runs for an attempt, then takes its images away, and if it is no set what is kept for it. Asked for again
    /// while it is at it, it does so once more: what came meanwhile may have been passed over.
    fn take_away(&self, attempt: Attempt, release: bool) {
        let number = attempt.number;
        {
            let mut state = self.lock();
            if let Some(again) = state.going.get_mut(&number) {
                *again = Some(release || *again == Some(true));
                return;
            }
            state.going.insert(number, None);
        }
        self.in_thread(move |agent| {
            let mut release = release;
            loop {
                agent.take_away_now(&attempt, release);
                let mut state = agent.lock();
                match state.going.get_mut(&number).and_then(Option::take) {
                    Some(again) => release = again,
                    None => {
                        state.going.remove(&number);
                        break;
                    }
                }
            }
            agent.0.changed.notify_all();
            (agent.0.wake)();
        });
    }

    fn take_away_now(&self, attempt: &Attempt, release: bool) {
        let number = attempt.number;
        let mut state = self.lock();
        for ((_, _), abort) in state.programs.iter().filter(|((of, _), _)| *of == number) {
            // An eventfd takes a number always.
            let _ = abort.abort();
        }
        while state.programs.keys().any(|(of, _)| *of == number) {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.versions.retain(|(of, _), _| *of != number);
        drop(state);
        // What cannot be removed now is at the next start.
        let _ = fs::remove_dir_all(self.0.setup.folder.join(number.to_string()));
        // Also what a program's end brings about while the server stops.
        if release && !self.lock().stopping {
            self.0.host.release(attempt);
        }
    }
}

#[cfg(test)]
mod tests;

fn failed(role: Role, why: &str) -> Fault {
    Fault { code: role_code(role), why: why.to_owned() }
}

/// Checksums by name, inode, size and time of a file: of what an engine links into one image after the other.
struct Sums {
    path: PathBuf,
    known: BTreeMap<String, String>,
    used: BTreeMap<String, String>,
}

impl Sums {
    fn read(path: &Path) -> Sums {
        let read = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Sums { path: path.to_owned(), known: read.unwrap_or_default(), used: BTreeMap::new() }
    }

    /// The files of an image with their checksums.
    fn files(&mut self, image: &Path) -> Result<Vec<crate::tree::Entry>, Error> {
        let mut entries = list_tree(image)?;
        for entry in entries.iter_mut().filter(|entry| entry.kind == Kind::File) {
            let path = image.join(&entry.path);
            let meta = fs::metadata(&path).map_err(Error::io("look at", &path))?;
            // One link means that it was made for this image.
            if meta.nlink() < 2 {
                entry.blake3 = Some(sum_of(&path)?.1);
                continue;
            }
            let key = format!(
                "{} {} {} {}.{}",
                entry.path,
                meta.ino(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            let sum = match self.known.get(&key) {
                Some(sum) => sum.clone(),
                None => sum_of(&path)?.1,
            };
            self.used.insert(key, sum.clone());
            entry.blake3 = Some(sum);
        }
        Ok(entries)
    }

    /// What cannot be kept is read again the next time.
    fn write(self) {
        let temporary = self.path.with_extension("new");
        let written = serde_json::to_vec(&self.used).map(|text| fs::write(&temporary, text));
        if matches!(written, Ok(Ok(()))) {
            let _ = fs::rename(&temporary, &self.path);
        }
    }
}
