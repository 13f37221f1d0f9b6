//! `userswap run` over servers, checked through what they answer.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::limited::{User, assert_mode, folder, possible_with};
use support::{records, userswap};

/// Longer than a server is needed: it must not outlive a test that was killed.
const LONGEST_SECONDS: &str = "120";

/// How often a server is asked whether it is ready, every 20 ms.
const ASKED: usize = 3000;

/// A server on a port of its own on the loopback interface.
struct Server {
    /// `timeout`, which passes signals on.
    process: Child,
    port: u16,
    /// Its limit in MiB and where its statistics go.
    limited: Option<(u64, PathBuf)>,
}

impl Server {
    /// Starts `program`, under a limit of so many MiB if there is one; `arguments` gets its port.
    fn start(
        folder: &Path,
        limit: Option<u64>,
        program: &str,
        arguments: impl FnOnce(&str) -> Vec<String>,
    ) -> Self {
        let port = free_port();
        let mut command = Command::new("timeout");
        command.args(["-k", "1", LONGEST_SECONDS]);
        let limited = limit.map(|limit| (limit, folder.join(format!("{port}.json"))));
        if let Some((limit, stats)) = &limited {
            command
                .arg(userswap(&[]).get_program())
                .args(["run", "--limit", &format!("{limit}M"), "--stats"])
                .arg(stats)
                .arg("--");
        }
        command.arg(program).args(arguments(&port.to_string()));
        command.current_dir(folder).stdout(Stdio::null());
        let process = command.spawn().expect("the server starts");
        let server = Self {
            process,
            port,
            limited,
        };
        for _ in 0..ASKED {
            // One that nobody listens to may be connected with itself.
            let stream = TcpStream::connect(("127.0.0.1", port));
            if stream.is_ok_and(|stream| stream.local_addr().ok() != stream.peer_addr().ok()) {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{program} does not answer");
    }

    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it answers");
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Connection(BufReader::new(stream))
    }

    /// Ends the server; under a limit it must have swapped.
    fn stop(mut self) {
        self.terminate();
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "{status}");
        let Some((limit, stats)) = &self.limited else {
            return;
        };
        let lines = std::fs::read_to_string(stats).expect("statistics");
        let mut swapping = records(&lines);
        swapping.retain(|record| record["faults_mode"] != "none");
        assert!(!swapping.is_empty(), "nothing was swapped: {lines}");
        for record in &swapping {
            let number = |field: &str| record[field].as_u64().expect("a number");
            println!(
                "{} of {limit} MiB: at most {} MiB, {} MiB out, {} faults",
                record["program"],
                number("most_resident_bytes") >> 20,
                number("out_bytes") >> 20,
                number("faults"),
            );
            assert_eq!(number("bugs"), 0, "{record}");
            assert_mode(User::Any, record);
            assert!(number("out_bytes") > 0, "{record}");
        }
    }

    fn terminate(&self) {
        let process = rustix::process::Pid::from_child(&self.process);
        // Refused only where it has ended.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    }
}

/// A port on the loopback interface that nobody has, and that the system does not give to clients by default.
fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(64);
    let ports = std::iter::repeat_with(|| {
        let next = start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        (FIRST + next % COUNT) as u16
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports
        .take(COUNT as usize)
        .find(is_free)
        .expect("a free port")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.terminate();
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("it reads");
    }

    /// A line without its end.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it answers");
        assert!(line.ends_with("\r\n"), "it ended: {line:?}");
        line.trim_end().to_owned()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count + 2];
        self.0.read_exact(&mut bytes).expect("it answers");
        assert_eq!(bytes.split_off(count), b"\r\n");
        bytes
    }

    /// Has a Redis server do `command`; returns what it answers.
    fn redis(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes());
        self.redis_answer()
    }

    fn redis_answer(&mut self) -> String {
        let line = self.line();
        let Some(len) = line.strip_prefix('$') else {
            assert!(!line.starts_with('-'), "{line}");
            return line;
        };
        let bytes = self.bytes(len.parse().expect("a length"));
        String::from_utf8(bytes).expect("text")
    }

    /// Asks a Redis server for `section` until it says `wanted`.
    fn redis_until(&mut self, section: &str, wanted: &str) {
        for _ in 0..ASKED {
            if self.redis(&format!("INFO {section}")).contains(wanted) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("never {wanted}");
    }
}

fn redis(folder: &Path, limit: Option<u64>) -> Server {
    std::fs::create_dir_all(folder).expect("a folder");
    let dir = folder.to_str().expect("a name").to_owned();
    Server::start(folder, limit, "redis-server", |port| {
        let line =
            format!("--port {port} --bind 127.0.0.1 --save '' --enable-debug-command yes --dir");
        let mut words: Vec<_> = line.split(' ').map(|word| word.replace('\'', "")).collect();
        words.push(dir);
        words
    })
}

/// Fills a server, changes much of it while it saves, has it load itself again, and a second one copy it. Returns the
/// digests of the data at each step.
fn redis_session(folder: &Path, limit: Option<u64>) -> Vec<String> {
    let server = redis(folder, limit);
    let mut connection = server.connect();
    connection.redis("DEBUG POPULATE 40000 key 1400");
    let mut digests = vec![connection.redis("DEBUG DIGEST")];

    connection.redis("BGSAVE");
    let commands: Vec<_> = (0..4000)
        .map(|i| {
            let value = format!("changed {i} ").repeat(100);
            format!("SET key:{} \"{value}\"\r\n", i * 7 % 40_000)
        })
        .collect();
    for batch in commands.chunks(50) {
        connection.send(batch.concat().as_bytes());
        for _ in batch {
            assert_eq!(connection.redis_answer(), "+OK");
        }
    }
    connection.redis_until("persistence", "rdb_bgsave_in_progress:0");
    let status = connection.redis("INFO persistence");
    assert!(status.contains("rdb_last_bgsave_status:ok"), "{status}");
    digests.push(connection.redis("DEBUG DIGEST"));

    // What was saved is what was there when it began, whatever was written meanwhile.
    let saved = folder.join("saved");
    std::fs::create_dir_all(&saved).expect("a folder");
    std::fs::copy(folder.join("dump.rdb"), saved.join("dump.rdb")).expect("the dump");
    let other = redis(&saved, None);
    let mut connection_to_other = other.connect();
    connection_to_other.redis_until("persistence", "\nloading:0");
    digests.push(connection_to_other.redis("DEBUG DIGEST"));
    other.stop();

    assert_eq!(connection.redis("DEBUG RELOAD"), "+OK");
    digests.push(connection.redis("DEBUG DIGEST"));

    let replica = redis(&folder.join("replica"), limit);
    let mut connection_to_replica = replica.connect();
    connection_to_replica.redis(&format!("REPLICAOF 127.0.0.1 {}", server.port));
    connection_to_replica.redis_until("replication", "master_link_status:up");
    digests.push(connection_to_replica.redis("DEBUG DIGEST"));
    replica.stop();
    server.stop();
    digests
}

#[test]
fn redis_holds_saves_loads_and_replicates_its_data() {
    let test = "redis_holds_saves_loads_and_replicates_its_data";
    if !possible_with(test, &["redis-server"]) {
        return;
    }
    let folder = folder(test);
    let native = redis_session(&folder.join("native"), None);
    assert_eq!(native[0], native[2]);
    assert_eq!(native[1], native[3]);
    let limited = redis_session(&folder.join("limited"), Some(60));
    assert_eq!(limited, native);
}

const CLIENTS: usize = 4;
const VALUES: usize = 4000;

fn value(client: usize, number: usize) -> Vec<u8> {
    let text = format!("client {client} value {number} ");
    text.repeat(3500 / text.len()).into_bytes()
}

fn memcached_client(mut connection: Connection, client: usize) {
    let name = |number| format!("c{client}v{number}");
    let set = |connection: &mut Connection, number: usize, value: &[u8]| {
        let head = format!("set {} 0 0 {}\r\n", name(number), value.len());
        connection.send(&[head.as_bytes(), value, b"\r\n"].concat());
        assert_eq!(connection.line(), "STORED");
    };
    let get = |connection: &mut Connection, number: usize| {
        connection.send(format!("get {}\r\n", name(number)).as_bytes());
        let head = connection.line();
        let len = head
            .rsplit(' ')
            .next()
            .and_then(|len| len.parse().ok())
            .expect(&head);
        let bytes = connection.bytes(len);
        assert_eq!(connection.line(), "END");
        bytes
    };
    for number in 0..VALUES {
        set(&mut connection, number, &value(client, number));
    }
    // All of them, and every third one changed on the way.
    for number in 0..VALUES {
        assert_eq!(get(&mut connection, number), value(client, number));
        if number.is_multiple_of(3) {
            set(&mut connection, number, &value(client, number + VALUES));
        }
    }
    for at in 0..VALUES {
        let number = at * 601 % VALUES;
        let wanted = if number.is_multiple_of(3) {
            number + VALUES
        } else {
            number
        };
        assert_eq!(get(&mut connection, number), value(client, wanted));
    }
}

#[test]
fn memcached_gives_back_what_its_clients_set() {
    let test = "memcached_gives_back_what_its_clients_set";
    if !possible_with(test, &["memcached"]) {
        return;
    }
    let folder = folder(test);
    let server = Server::start(&folder, Some(50), "memcached", |port| {
        let line = format!("-u root -l 127.0.0.1 -U 0 -m 256 -t 4 -p {port}");
        line.split(' ').map(str::to_owned).collect()
    });
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let connection = server.connect();
            scope.spawn(move || memcached_client(connection, client));
        }
    });
    server.stop();
}
