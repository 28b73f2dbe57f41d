//! Whether a server that runs serves: asked as its unit file says that it can be asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

const CONNECTS_WITHIN: Duration = Duration::from_secs(2);
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer that is looked at.
const ANSWER_MAX: u64 = 4096;

/// `Err`: why it does not serve. `command`: what its unit file runs.
pub(crate) fn serves(command: &[String]) -> Result<(), String> {
    match command.get(1).map(String::as_str) {
        Some("admin") => admin(command),
        Some("meta") => ready(option(command, "http-addr").unwrap_or("127.0.0.1:8445")),
        Some("tlog") => ready(option(command, "http-addr").unwrap_or("127.0.0.1:8447")),
        // Of another one nobody knows more than that it runs.
        _ => Ok(()),
    }
}

/// The admin server speaks TLS with a certificate of its own: its own command knows which.
fn admin(command: &[String]) -> Result<(), String> {
    let mut asks = Command::new(&command[0]);
    asks.args(["admin", "status"]).stdin(Stdio::null());
    if let Some(folder) = option(command, "db-folder") {
        asks.args(["--db-folder", folder]);
    }
    let said = asks.output().map_err(|error| format!("cannot run {} admin status: {error}", command[0]))?;
    if said.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&said.stderr).trim().to_owned())
}

fn ready(address: &str) -> Result<(), String> {
    let at: SocketAddr =
        address.parse().map_err(|_| format!("'{address}' of its unit file is no ADDR:PORT"))?;
    let ask = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&at, CONNECTS_WITHIN)?;
        connection.set_read_timeout(Some(ANSWERS_WITHIN))?;
        connection.set_write_timeout(Some(ANSWERS_WITHIN))?;
        write!(connection, "GET /readyz HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        connection.take(ANSWER_MAX).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().map_err(|error| format!("http://{at}/readyz: {error}"))?;
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned()),
    }
}

/// The value of an option, however it is spelled: `--http-addr A`, `--http-addr=A`, `--httpAddr A`. The last one counts.
fn option<'a>(command: &'a [String], name: &str) -> Option<&'a str> {
    let plain = |word: &str| word.replace('-', "").to_ascii_lowercase();
    let wanted = plain(name);
    let mut found = None;
    for (n, word) in command.iter().enumerate() {
        let Some(word) = word.strip_prefix("--") else { continue };
        match word.split_once('=') {
            Some((spelled, value)) if plain(spelled) == wanted => found = Some(value),
            None if plain(word) == wanted => found = command.get(n + 1).map(String::as_str),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn an_option_is_found_however_it_is_spelled() {
        for line in [
            "c meta start --http-addr A",
            "c meta start --httpAddr=A",
            "c --http-addr=B --db-folder x --httpAddr A",
        ] {
            assert_eq!(option(&words(line), "http-addr"), Some("A"), "{line}");
        }
        assert_eq!(option(&words("c meta start --http-address A"), "http-addr"), None);
        assert_eq!(option(&words("c meta start --http-addr"), "http-addr"), None);
    }

    #[test]
    fn a_server_serves_once_it_says_that_it_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = ["HTTP/1.1 503 x\r\n\r\nno volumes assigned yet\n", "HTTP/1.1 200 OK\r\n\r\nready\n"];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut connection, _) = listener.accept().unwrap();
                let mut asked = [0; 11];
                connection.read_exact(&mut asked).unwrap();
                assert_eq!(&asked, b"GET /readyz");
                connection.write_all(answer.as_bytes()).unwrap();
                // What was asked is read to its end: a reset would take the answer away.
                connection.shutdown(std::net::Shutdown::Write).unwrap();
                let _ = connection.read_to_end(&mut Vec::new());
            }
        });
        let command = words(&format!("/bin/chronofs meta start --http-addr {address}"));
        assert_eq!(serves(&command).unwrap_err(), "no volumes assigned yet");
        serves(&command).unwrap();
        server.join().unwrap();
        assert!(serves(&command).unwrap_err().contains("/readyz"), "nobody listens any more");
    }

    #[test]
    fn an_admin_server_is_asked_by_its_own_executable() {
        let asked = |program: &str| serves(&words(&format!("{program} admin start --db-folder /x")));
        assert!(asked("/bin/false").is_err());
        asked("/bin/true").unwrap();
        assert!(asked("/nowhere/chronofs").unwrap_err().contains("cannot run"));
    }
}
