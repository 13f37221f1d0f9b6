//! What the hook would find in files: `cargo run -p userswap-hook --example inspect -- FILE...`

fn main() {
    for path in std::env::args_os().skip(1).map(std::path::PathBuf::from) {
        match userswap_hook::inspect(&path) {
            Ok(found) => {
                let library = found.library;
                if library.rewritten + library.native + library.uncovered.len() > 0
                    || !found.dynamic
                {
                    println!(
                        "{}: {}, {} can be rewritten, {} native, {} uncovered {:x?}",
                        path.display(),
                        if found.dynamic { "dynamic" } else { "static" },
                        library.rewritten,
                        library.native,
                        library.uncovered.len(),
                        library.uncovered,
                    );
                }
            }
            Err(error) => eprintln!("{}: {error}", path.display()),
        }
    }
}
