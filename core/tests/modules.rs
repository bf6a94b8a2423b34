//! There are no cycles between the modules of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

#[test]
fn there_are_no_cycles_between_the_modules() {
    let sources = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let mut uses: BTreeMap<_, _> = sources
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), used_by(&path)))
        .collect();
    // Modules that use none of the modules left are removed, until there are no such modules.
    loop {
        let left: BTreeSet<_> = uses.keys().cloned().collect();
        uses.retain(|_, used| !used.is_disjoint(&left));
        if uses.len() == left.len() {
            break;
        }
    }
    assert!(uses.is_empty(), "there is a cycle between some of these modules: {:?}", uses.keys());
}

/// The modules that a file's code names.
fn used_by(path: &Path) -> BTreeSet<String> {
    let source = fs::read_to_string(path).unwrap();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let paths = code.flat_map(|line| line.split("crate::").skip(1));
    let module =
        |path: &str| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    paths.map(module).collect()
}
