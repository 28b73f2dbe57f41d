//! Keys and passphrases that people give: a file, the environment or the terminal, and never an argument, which others see
//! in the list of processes.

use anyhow::{Context, Result, anyhow, bail};
use chronofs_keys::{Passphrase, SecretKey, VolumeSecret};
use clap::Args;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// What was named.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Named {
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Ask for the passphrase.
    pub(crate) passphrase: bool,
}

/// The variables that count where nothing is named.
pub(crate) struct Environment {
    pub(crate) key_file: &'static str,
    pub(crate) passphrase: &'static str,
}

/// How often a passphrase is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Once,
    /// A typing error would lock everything away.
    Twice,
}

/// What there is.
pub(crate) enum Found {
    Key(SecretKey),
    Passphrase(Passphrase),
}

/// [`Named`], with what the environment says.
pub(crate) enum Source {
    Nothing,
    KeyFile(PathBuf),
    PassphraseFile(PathBuf),
    /// Of the environment.
    Text(Zeroizing<Vec<u8>>),
    Terminal,
}

impl Environment {
    /// What is said where a key is needed and nothing names one.
    pub(crate) fn missing(&self) -> String {
        format!(
            "it needs a key or a passphrase: --key-file FILE, --passphrase-file FILE, --passphrase (asks), or the variable {} \
             or {}",
            self.key_file, self.passphrase
        )
    }
}

impl Named {
    /// What is named, or else what the environment says.
    pub(crate) fn or(self, environment: &Environment) -> Source {
        let key_file = std::env::var_os(environment.key_file);
        let passphrase = std::env::var_os(environment.passphrase).map(|text| Zeroizing::new(text.into_vec()));
        self.or_else(key_file.map(PathBuf::from), passphrase)
    }

    fn or_else(self, key_file: Option<PathBuf>, passphrase: Option<Zeroizing<Vec<u8>>>) -> Source {
        let Named { key_file: named, passphrase_file, passphrase: ask } = self;
        match (named, passphrase_file, ask) {
            (Some(file), ..) => Source::KeyFile(file),
            (_, Some(file), _) => Source::PassphraseFile(file),
            (_, _, true) => Source::Terminal,
            _ => match (key_file, passphrase) {
                (Some(file), _) => Source::KeyFile(file),
                (None, Some(text)) => Source::Text(text),
                (None, None) => Source::Nothing,
            },
        }
    }
}

impl Source {
    /// What it has. `made_by` is the command that makes key files.
    pub(crate) fn read(self, made_by: &str, asked: Asked) -> Result<Option<Found>> {
        Ok(Some(match self {
            Source::Nothing => return Ok(None),
            Source::KeyFile(file) => Found::Key(SecretKey::read(&file, made_by)?),
            Source::PassphraseFile(file) => Found::Passphrase(Passphrase::read(&file)?),
            Source::Text(bytes) => {
                let text = std::str::from_utf8(&bytes).map_err(|_| {
                    anyhow!("the passphrase in the environment is no UTF-8: set the variable anew")
                })?;
                Found::Passphrase(Passphrase::new(Zeroizing::new(text.to_owned()))?)
            }
            Source::Terminal => Found::Passphrase(ask(asked)?),
        }))
    }
}

/// What opens an encrypted volume.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct VolumeSecretArgs {
    /// File with the key that opens the encrypted volume [env: CHRONOFS_VOLUME_KEY_FILE]
    #[arg(long, value_name = "FILE", group = "unlocked_by")]
    key_file: Option<PathBuf>,
    /// File with the passphrase that opens the encrypted volume
    #[arg(long, value_name = "FILE", group = "unlocked_by")]
    passphrase_file: Option<PathBuf>,
    /// Ask for the passphrase of the encrypted volume on the terminal [env: CHRONOFS_VOLUME_PASSPHRASE]
    #[arg(long, group = "unlocked_by")]
    passphrase: bool,
}

impl VolumeSecretArgs {
    const ENVIRONMENT: Environment =
        Environment { key_file: "CHRONOFS_VOLUME_KEY_FILE", passphrase: "CHRONOFS_VOLUME_PASSPHRASE" };
    const MADE_BY: &str = "chronofs configure init volume-key FILE";

    pub(crate) fn named(
        key_file: Option<PathBuf>,
        passphrase_file: Option<PathBuf>,
        passphrase: bool,
    ) -> VolumeSecretArgs {
        VolumeSecretArgs { key_file, passphrase_file, passphrase }
    }

    /// Whether anything is named.
    pub(crate) fn is_some(&self) -> bool {
        self.key_file.is_some() || self.passphrase_file.is_some() || self.passphrase
    }

    /// What is named, or what the environment says, if anything.
    pub(crate) fn found(self) -> Result<Option<VolumeSecret>> {
        let source = self.what().or(&VolumeSecretArgs::ENVIRONMENT);
        VolumeSecretArgs::read(source, Asked::Once)
    }

    /// As it is for a volume that is to be opened.
    pub(crate) fn of_a_volume(self) -> Result<VolumeSecret> {
        self.found()?.ok_or_else(|| anyhow!(VolumeSecretArgs::ENVIRONMENT.missing()))
    }

    /// As it is for a volume that is made.
    pub(crate) fn of_a_new_volume(self) -> Result<VolumeSecret> {
        let source = self.what().or(&VolumeSecretArgs::ENVIRONMENT);
        let found = VolumeSecretArgs::read(source, Asked::Twice)?;
        found.ok_or_else(|| anyhow!(VolumeSecretArgs::ENVIRONMENT.missing()))
    }

    /// What is named, for what is to open a volume from now on. The environment has what opens it now.
    pub(crate) fn named_new(self) -> Result<Option<VolumeSecret>> {
        VolumeSecretArgs::read(self.what().or_else(None, None), Asked::Twice)
    }

    fn what(self) -> Named {
        let VolumeSecretArgs { key_file, passphrase_file, passphrase } = self;
        Named { key_file, passphrase_file, passphrase }
    }

    fn read(source: Source, asked: Asked) -> Result<Option<VolumeSecret>> {
        let found = source.read(VolumeSecretArgs::MADE_BY, asked)?;
        Ok(found.map(|secret| match secret {
            Found::Key(key) => VolumeSecret::Key(key),
            Found::Passphrase(passphrase) => VolumeSecret::Passphrase(passphrase),
        }))
    }
}

fn ask(asked: Asked) -> Result<Passphrase> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let terminal = terminal
        .context("there is no terminal to ask on; name a file with --passphrase-file, or use the variable")?;
    ask_on(&terminal, asked)
}

fn ask_on(terminal: &File, asked: Asked) -> Result<Passphrase> {
    let first = line(terminal, "Passphrase: ")?;
    if asked == Asked::Twice && *line(terminal, "The same again: ")? != *first {
        bail!("the two passphrases are not the same");
    }
    Ok(Passphrase::new(first)?)
}

/// The terminal as it was, when this goes.
struct Silent<'a> {
    terminal: &'a File,
    was: Termios,
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal.as_fd(), SetArg::TCSANOW, &self.was);
    }
}

/// A line that is not shown. Keys that would end the program are read too, so that it never leaves a terminal without echo.
fn line(terminal: &File, prompt: &str) -> Result<Zeroizing<String>> {
    let was = tcgetattr(terminal.as_fd()).context("the terminal does not answer")?;
    let silent = Silent { terminal, was: was.clone() };
    let mut quiet = was;
    quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
    quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    tcsetattr(terminal.as_fd(), SetArg::TCSAFLUSH, &quiet).context("the terminal cannot be silenced")?;
    let mut tty = terminal;
    tty.write_all(prompt.as_bytes())?;
    let typed = typed(&mut tty);
    tty.write_all(b"\n")?;
    drop(silent);
    typed
}

fn typed(input: &mut impl Read) -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    loop {
        let mut byte = [0];
        if input.read(&mut byte)? == 0 {
            bail!("no passphrase was given");
        }
        match byte[0] {
            b'\n' | b'\r' => break,
            // Ctrl-C, Ctrl-D, Ctrl-\.
            3 | 4 | 28 => bail!("no passphrase was given"),
            // Ctrl-U.
            21 => bytes.clear(),
            8 | 127 => while bytes.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            _ if bytes.len() == bytes.capacity() => bail!("that is too long"),
            byte => bytes.push(byte),
        }
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| anyhow!("what was typed is no UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;

    fn typing(keys: &str) -> Result<String> {
        typed(&mut keys.as_bytes()).map(|text| text.to_string())
    }

    #[test]
    fn keys_that_correct_are_obeyed() {
        assert_eq!(typing("two words\n").unwrap(), "two words");
        assert_eq!(typing("tü\u{7f}wo\n").unwrap(), "two");
        assert_eq!(typing("wrong\u{15}right\r").unwrap(), "right");
        assert_eq!(typing("\u{7f}\u{7f}a\n").unwrap(), "a");
        assert!(typing("ab\u{3}").is_err());
        assert!(typing("cut off").is_err());
        assert!(typing(&"x".repeat(5000)).is_err());
    }

    #[test]
    fn what_is_typed_on_a_terminal_is_not_shown_and_the_terminal_is_as_before() {
        let pty = openpty(None, None).unwrap();
        let (person, terminal) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(terminal.as_fd()).unwrap();
        let typing = std::thread::spawn(move || {
            let mut person = person;
            let mut shown = Vec::new();
            // Typed when asked: what came earlier is thrown away.
            for (prompt, keys) in [("Passphrase: ", "two words\n"), ("again: ", "two words\n")] {
                while !String::from_utf8_lossy(&shown).ends_with(prompt) {
                    let mut some = [0; 100];
                    let n = person.read(&mut some).unwrap();
                    shown.extend_from_slice(&some[..n]);
                }
                person.write_all(keys.as_bytes()).unwrap();
            }
            let mut some = [0; 100];
            let n = person.read(&mut some).unwrap();
            shown.extend_from_slice(&some[..n]);
            // A terminal whose other end is gone answers nothing.
            (String::from_utf8(shown).unwrap(), person)
        });
        let passphrase = ask_on(&terminal, Asked::Twice).unwrap();
        let (shown, _person) = typing.join().unwrap();
        assert_eq!(passphrase.reveal(), "two words");
        assert!(!shown.contains("two") && !shown.contains("words"), "{shown:?}");
        assert_eq!(tcgetattr(terminal.as_fd()).unwrap().local_flags, before.local_flags);
    }

    #[test]
    fn a_passphrase_of_the_environment_that_is_no_text_is_an_error_unless_another_is_named() {
        let bytes = || Some(Zeroizing::new(vec![b'x', 0xff]));
        let read = |source: Source| source.read("made", Asked::Once);
        let said = read(Named::default().or_else(None, bytes())).err().unwrap().to_string();
        assert!(said.contains("no UTF-8"), "{said}");
        let named = Named { passphrase_file: Some(PathBuf::from("file")), ..Named::default() };
        assert!(matches!(named.or_else(None, bytes()), Source::PassphraseFile(_)));
    }

    #[test]
    fn what_is_named_counts_before_the_environment() {
        let (file, other) = (PathBuf::from("key"), PathBuf::from("other"));
        let text = || Some(Zeroizing::new(b"x".to_vec()));
        let named = Named { key_file: Some(file.clone()), ..Named::default() };
        assert!(matches!(named.or_else(Some(other.clone()), text()), Source::KeyFile(f) if f == file));
        let named = Named { passphrase_file: Some(file.clone()), ..Named::default() };
        assert!(matches!(named.or_else(Some(other.clone()), None), Source::PassphraseFile(f) if f == file));
        let named = Named { passphrase: true, ..Named::default() };
        assert!(matches!(named.or_else(Some(other.clone()), None), Source::Terminal));
        let env = Named::default().or_else(Some(other.clone()), text());
        assert!(matches!(env, Source::KeyFile(f) if f == other));
        assert!(matches!(Named::default().or_else(None, text()), Source::Text(_)));
        assert!(matches!(Named::default().or_else(None, None), Source::Nothing));
    }
}
