//! `userswap run`: programs that everybody has, under about three quarters and a half of what they need.

mod support;

use std::path::Path;

use support::limited::{folder, possible_with, same_within};

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
    same_within(test, &folder, limits, &["bash", "-c", script]);
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
        &[60],
        |_| {},
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
        "sort -n -S 100M --parallel=4 numbers > sorted; sort -n -c sorted && sha256sum sorted",
    );
}

#[test]
fn gcc_makes_the_same_object_file() {
    check_script(
        "gcc_makes_the_same_object_file",
        &["gcc", "sha256sum"],
        &[48],
        |folder| std::fs::write(folder.join("big.c"), c_source(150)).expect("a file"),
        "gcc -O2 -c -o big.o big.c && sha256sum big.o",
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
        &[85],
        set_up,
        "rustc --edition 2021 -Ccodegen-units=2 --emit=llvm-ir -o big.ll big.rs && sha256sum big.ll",
    );
}

#[test]
fn a_pipeline_of_a_shell() {
    check_script(
        "a_pipeline_of_a_shell",
        &["sort", "awk", "sha256sum"],
        &[40],
        |folder| write_numbers(&folder.join("numbers"), 200_000),
        "words=$(cat numbers); echo ${#words}; for i in 1 2 3; do echo \"$words\" | sort -S 40M | uniq -c | \
         awk '{ seen[$2 % 5000] = seen[$2 % 5000] $1 } END { for (i = 0; i < 5000; i++) print seen[i] }' | sha256sum; \
         done; exec 5> out; echo \"$words\" >&5; exec 5>&-; sha256sum < out",
    );
}
