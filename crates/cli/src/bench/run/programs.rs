//! The programs that are measured where none is named: what a host is likely to have, each with an order in which it
//! goes through its memory.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::random::Random;

/// The order in which a program goes through its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Access {
    Sequential,
    Mixed,
    /// Somebody else's program.
    Unknown,
}

/// A program to measure.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) access: Access,
    pub(super) command: Vec<OsString>,
}

impl Program {
    /// One that the caller named.
    pub(super) fn named(command: &[OsString]) -> Self {
        let file = Path::new(&command[0]).file_name();
        let file = file.unwrap_or(&command[0]);
        Self {
            name: file.to_string_lossy().into_owned(),
            access: Access::Unknown,
            command: command.to_vec(),
        }
    }
}

/// A program of the list, before it is known to be installed.
struct Listed {
    name: &'static str,
    access: Access,
    command: &'static [&'static str],
    /// Writes what it reads.
    set_up: fn(&Path) -> io::Result<()>,
}

const PYTHON_SCAN: &str = "
import zlib
part = b''.join(b'%d apples, %d pears\\n' % (i, i * i) for i in range(30000))
part = part[:len(part) // 4096 * 4096]
data = bytearray(128 << 20)
for at in range(0, len(data), len(part)):
    rest = min(len(part), len(data) - at)
    data[at:at + rest] = part[:rest]
view, check = memoryview(data), 0
for walk in range(6):
    for at in range(0, len(data), 1 << 20):
        check = zlib.crc32(view[at:at + (1 << 20)], check)
print(check)";

const PYTHON_LISTS: &str = "
words = [str(i * 7919) for i in range(700000)]
parts = [word[::-1] for word in words]
total = 0
for walk in range(3):
    total += sum(map(len, parts)) + sum(1 for word in words if word[-1] == '7')
    # Some at random, most of them in a tenth of the list.
    place = walk
    for i in range(60000):
        place = (place * 1103515245 + 12345) % 2147483648
        at = place % len(words) if i % 20 == 0 else place % (len(words) // 10)
        total += len(words[at]) * int(parts[at][0])
print(total, max(words), min(parts))";

const PYTHON_DICTS: &str = "
table = {i * 7919 % 1000003: [i, str(i)] for i in range(500000)}
total = 0
for walk in range(3):
    for i in range(0, 1000003, 16):
        row = table.get(i)
        if row: total += row[0] + len(row[1])
words = {}
for row in table.values(): words.setdefault(row[1][:3], []).append(row[0])
print(total, len(words), sum(map(sum, words.values())))";

const SQLITE: &str = "create table t(a integer, b text, c integer);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 800000)
insert into t select i * 7919 % 1000003, printf('%08x-%s', i * 40503 % 65521, hex(i)), i % 97 from n;
create index by_b on t(b); create index by_c on t(c, a);
select count(*), sum(a), min(b), max(b) from t;
select sum(x * c) from (select row_number() over (order by b desc) x, c from t);
pragma integrity_check;";

const AWK: &str = "BEGIN {
    for (i = 0; i < 1200000; i++) row[i] = i * 3 \" of \" i
    for (walk = 0; walk < 3; walk++) for (i = 0; i < 1200000; i++) sum += length(row[i])
    print sum
}";

const LIST: [Listed; 7] = [
    Listed {
        name: "python scan",
        access: Access::Sequential,
        command: &["python3", "-c", PYTHON_SCAN],
        set_up: nothing,
    },
    Listed {
        name: "awk scan",
        access: Access::Sequential,
        command: &["awk", AWK],
        set_up: nothing,
    },
    Listed {
        name: "python lists",
        access: Access::Mixed,
        command: &["python3", "-c", PYTHON_LISTS],
        set_up: nothing,
    },
    Listed {
        name: "python dicts",
        access: Access::Mixed,
        command: &["python3", "-c", PYTHON_DICTS],
        set_up: nothing,
    },
    Listed {
        name: "sort",
        access: Access::Mixed,
        command: &["sort", "-S", "1G", "--parallel=1", "lines"],
        set_up: write_lines,
    },
    Listed {
        name: "sqlite3",
        access: Access::Mixed,
        command: &["sqlite3", ":memory:", SQLITE],
        set_up: nothing,
    },
    Listed {
        name: "gcc -O2",
        access: Access::Mixed,
        command: &["gcc", "-O2", "-S", "-o", "/dev/stdout", "source.c"],
        set_up: write_source,
    },
];

/// The programs of the list that are installed, ready to run in `folder`; and the names of the others.
pub(super) fn installed(folder: &Path) -> io::Result<(Vec<Program>, Vec<&'static str>)> {
    let (mut programs, mut missing) = (Vec::new(), Vec::new());
    for listed in LIST {
        if find(listed.command[0]).is_none() {
            missing.push(listed.name);
            continue;
        }
        (listed.set_up)(folder)?;
        programs.push(Program {
            name: listed.name.to_owned(),
            access: listed.access,
            command: listed.command.iter().map(OsString::from).collect(),
        });
    }
    Ok((programs, missing))
}

/// Where a program is.
fn find(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn nothing(_: &Path) -> io::Result<()> {
    Ok(())
}

// Written bit by bit: the most that this process ever had in memory counts as what a program it starts had.

fn write_lines(folder: &Path) -> io::Result<()> {
    let mut random = Random::new(1);
    let mut lines = BufWriter::new(File::create(folder.join("lines"))?);
    for at in 0..1_200_000_u32 {
        let number = random.next();
        writeln!(lines, "{:010x} {at} of the lines to sort", number >> 24)?;
    }
    lines.flush()
}

/// Statements of which none is like another.
fn write_source(folder: &Path) -> io::Result<()> {
    let mut random = Random::new(2);
    let mut source = BufWriter::new(File::create(folder.join("source.c"))?);
    writeln!(source, "#include <stdint.h>\nextern uint64_t t[4096];")?;
    for function in 0..6 {
        writeln!(
            source,
            "uint64_t f{function}(uint64_t a, uint64_t b) {{\n  int i;"
        )?;
        for _ in 0..100 {
            write_statement(&mut source, random.next() >> 40)?;
        }
        writeln!(source, "  return a + b;\n}}")?;
    }
    source.flush()
}

fn write_statement(source: &mut impl Write, number: u64) -> io::Result<()> {
    let (times, case, shift) = (number % 90 + 3, number % 5 + 2, number % 13 + 1);
    writeln!(
        source,
        "  for (i = 0; i < {times}; i++) switch ((a ^ b) % 7) {{\n  case 0: a += t[(b + {number}u) % 4096]; break;\n  \
         case 1: b ^= a * {number}u; break;\n  case {case}: t[a % 4096] = b--; break;\n  \
         default: a = a << {shift} | b >> 3;\n  }}"
    )
}
