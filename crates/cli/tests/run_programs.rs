//! `userswap run`: programs that everybody has, under about three quarters and a half of what they need.

mod support;

use std::path::Path;
use std::process::Command;

use support::limited::{User, folder, possible_with, same_for, same_within};
use support::programs::possible_for;
use support::skip;

/// Numbers that a file is filled with, the same each time.
fn numbers(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 1_u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 24
    })
    .take(count)
}

fn write_numbers(path: &Path, count: usize) {
    let lines: Vec<String> = numbers(count).map(|number| number.to_string()).collect();
    std::fs::write(path, lines.join("\n") + "\n").expect("a file");
}

/// Many functions, of which none is like another.
fn c_source(functions: usize) -> String {
    let mut source = String::from("#include <stdint.h>\nextern uint64_t t[4096];\n");
    for (at, number) in numbers(functions).enumerate() {
        source += &format!(
            "uint64_t f{at}(uint64_t a, uint64_t b) {{\n  for (int i = 0; i < {}; i++) {{\n    \
             switch ((a ^ b) % 7) {{\n    case 0: a += t[(b + {number}u) % 4096]; break;\n    \
             case 1: b ^= a * {number}u; break;\n    case {}: t[a % 4096] = b--; break;\n    \
             default: a = a << {} | b >> 3;\n    }}\n  }}\n  return a * {number}u + b;\n}}\n",
            number % 90 + 3,
            number % 5 + 2,
            number % 13 + 1,
        );
    }
    source
}

/// A script, given to `sh -c`.
fn check_script(
    test: &str,
    programs: &[&str],
    limits: &[u64],
    set_up: impl FnOnce(&Path),
    script: &str,
) {
    let mut needed = vec!["timeout", "bash"];
    needed.extend(programs);
    if !possible_with(test, &needed) {
        return;
    }
    let folder = folder(test);
    set_up(&folder);
    let program = ["bash", "-c", script];
    same_within(test, &folder, limits, &program);
    // Some are where only their owner gets to.
    if !programs.contains(&"rustc") && possible_for(User::Unprivileged, test, &[]) {
        same_for(User::Unprivileged, test, &folder, limits, &program);
    }
}

#[test]
fn python_builds_lists_and_dictionaries() {
    let script = r#"exec python3 -c '
import hashlib, json
table = {str(i): [i, i * i, "x" * (i % 40)] for i in range(90000)}
rows = sorted(table.values(), key=lambda row: (row[2], -row[0]))
words = {}
for row in rows:
    words.setdefault(row[2], []).append(row[1] % 1009)
text = json.dumps([words, rows[::7]])
print(len(text), hashlib.sha256(text.encode()).hexdigest())
back = json.loads(text)
print(sum(row[1] for row in back[1]), sum(map(len, back[0].values())))
del table
import gc; gc.collect()
print(hashlib.sha256(json.dumps(sorted(back[0].items())).encode()).hexdigest())
'"#;
    check_script(
        "python_builds_lists_and_dictionaries",
        &["python3"],
        &[54],
        |_| {},
        script,
    );
}

/// Three quarters, a half and about a third of what they need, whoever handles faults.
fn check_far_below(test: &str, programs: &[&str], limits: &[u64], script: &str) {
    for user in [User::Any, User::Unprivileged] {
        if !possible_for(user, test, &[programs, &["timeout", "bash"]].concat()) {
            continue;
        }
        let folder = folder(&format!("{test}_{}", user.name()));
        same_for(user, test, &folder, limits, &["bash", "-c", script]);
    }
}

#[test]
fn python_far_below_its_need() {
    // It needs 104 MiB.
    let script = r#"exec python3 -c '
import hashlib
lists = [[i, str(i) * 200, [i % 7, i % 11]] for i in range(60000)]
table = {str(row[0]): row[1] for row in lists if row[0] % 2}
print(sum(len(row[1]) + row[2][1] for row in lists), sum(len(key) + len(value) for key, value in table.items()))
for row in lists[::3]: row[1] = row[1][7:] + str(row[0])
digest = hashlib.sha256()
for row in lists: digest.update(row[1].encode())
print(digest.hexdigest(), sorted(table)[-5:])
del table
print(sum(row[2][0] for row in lists), len({row[1][:9] for row in lists}))
'"#;
    check_far_below(
        "python_far_below_its_need",
        &["python3"],
        &[78, 52, 37],
        script,
    );
}

#[test]
fn numpy_far_below_its_need() {
    let test = "numpy_far_below_its_need";
    let has_numpy = Command::new("/usr/bin/python3")
        .args(["-c", "import numpy"])
        .output();
    if !has_numpy.is_ok_and(|output| output.status.success()) {
        return skip(test, "python3-numpy is not installed");
    }
    // It needs 217 MiB.
    let script = r#"exec /usr/bin/python3 -c '
import hashlib, numpy as np
a = (np.arange(4_000_000, dtype=np.int64) // 50 * 7919 % 257).reshape(2000, 2000)
b = a.astype(np.float64) + 0.25
mask = a > 128
c = np.where(mask, b, -b)
print(int(a.sum()), float(c.sum()), int(mask.sum()))
sums = np.add.reduceat(c, np.arange(0, 2000, 50), axis=0)
print(float(sums.max()), hashlib.sha256(np.ascontiguousarray(sums).tobytes()).hexdigest())
a.sort(axis=1)
print(hashlib.sha256(a.tobytes()).hexdigest(), int(np.unique(a[::10]).size))
d = np.concatenate([c[i::7] for i in range(7)])
print(hashlib.sha256(d.tobytes()).hexdigest(), bool((d[:286] == c[::7]).all()))
'"#;
    check_far_below(test, &[], &[163, 108, 80], script);
}

#[test]
fn sqlite_far_below_its_need() {
    // It needs 114 MiB.
    let script = r#"exec sqlite3 :memory: "create table t(a integer primary key, b text, c integer);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 120000)
        insert into t select i, (i % 1009) || hex(zeroblob(200)) || i, i % 97 from n;
        create index by_c on t(c);
        select count(*), sum(a), max(length(b)) from t;
        select c, count(*), sum(length(b)) from t where c between 30 and 33 group by c;
        update t set b = b || c where a % 5 = 0; delete from t where a > 100000;
        pragma integrity_check; select count(*), sum(length(b)), sum(a * c) from t;""#;
    check_far_below(
        "sqlite_far_below_its_need",
        &["sqlite3"],
        &[86, 57, 40],
        script,
    );
}

#[test]
fn sqlite_loads_indexes_and_sorts() {
    let script = "exec sqlite3 :memory: 'create table t(a integer, b text, c integer);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 150000)
        insert into t select i * 7919 % 200003, printf(\"%08x-%s\", i * 40503 % 65521, hex(i)), i % 97 from n;
        create index by_b on t(b); create index by_c on t(c, a);
        select count(*), sum(a), min(b), max(b) from t;
        select sum(x * c) from (select row_number() over (order by b desc) x, c from t);
        delete from t where c < 30; update t set b = b || a where c > 80;
        pragma integrity_check; select count(*), sum(length(b)) from t;'";
    check_script(
        "sqlite_loads_indexes_and_sorts",
        &["sqlite3"],
        &[26],
        |_| {},
        script,
    );
}

#[test]
fn sort_sorts_with_threads() {
    check_script(
        "sort_sorts_with_threads",
        &["sort", "sha256sum"],
        &[42],
        |folder| write_numbers(&folder.join("numbers"), 500_000),
        "rm -f sorted; sort -n -S 100M --parallel=4 numbers > sorted; sort -n -c sorted && sha256sum sorted",
    );
}

#[test]
fn gcc_makes_the_same_object_file() {
    check_script(
        "gcc_makes_the_same_object_file",
        &["gcc", "sha256sum"],
        &[40],
        |folder| std::fs::write(folder.join("big.c"), c_source(150)).expect("a file"),
        "rm -f big.o; gcc -O2 -c -o big.o big.c && sha256sum big.o",
    );
}

#[test]
fn rustc_makes_the_same_library() {
    let set_up = |folder: &Path| {
        let mut source = String::from("#![crate_type = \"lib\"]\n");
        for (at, number) in numbers(250).enumerate() {
            source += &format!(
                "#[derive(Clone, Debug, PartialEq)] pub struct S{at} {{ pub a: u64, pub b: Vec<String> }}\n\
                 pub fn f{at}(x: &S{at}) -> Option<u64> {{ x.b.iter().map(|s| s.len() as u64 ^ {number}).max() }}\n"
            );
        }
        std::fs::write(folder.join("big.rs"), source).expect("a file");
    };
    check_script(
        "rustc_makes_the_same_library",
        &["rustc", "sha256sum"],
        &[65],
        set_up,
        "rustc --edition 2021 -Ccodegen-units=2 --emit=llvm-ir -o big.ll big.rs && sha256sum big.ll",
    );
}

#[test]
fn make_builds_with_two_jobs() {
    let set_up = |folder: &Path| {
        for part in 0..4 {
            let source = c_source(60).replace("uint64_t f", &format!("uint64_t g{part}_"));
            std::fs::write(folder.join(format!("part{part}.c")), source).expect("a file");
        }
        let rules = "all: part0.o part1.o part2.o part3.o\n\tsha256sum $^\n\
            %.o: %.c\n\tgcc -O2 -c -o $@ $<\n";
        std::fs::write(folder.join("Makefile"), rules).expect("a file");
    };
    // Two compilers at a time, of 37 MiB each, of which they share some.
    check_script(
        "make_builds_with_two_jobs",
        &["make", "gcc", "sha256sum"],
        &[50],
        set_up,
        "rm -f part?.o; make -s -j2",
    );
}

#[test]
fn a_pipeline_of_a_shell() {
    check_script(
        "a_pipeline_of_a_shell",
        &["sort", "awk", "sha256sum"],
        &[28],
        |folder| write_numbers(&folder.join("numbers"), 200_000),
        "rm -f out; words=$(cat numbers); echo ${#words}; for i in 1 2 3; do echo \"$words\" | sort -S 40M | uniq -c | \
         awk '{ seen[$2 % 5000] = seen[$2 % 5000] $1 } END { for (i = 0; i < 5000; i++) print seen[i] }' | sha256sum; \
         done; exec 5> out; echo \"$words\" >&5; exec 5>&-; sha256sum < out",
    );
}
