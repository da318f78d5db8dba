//! The structure of the source: files are short, imports go downhill, and each tool is used in one place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const MAX_LINES: usize = 500;

/// The modules of `lib/iconoclash/src`, lowest first. A module may import those above it in this list, and its own entry.
///
/// An entry stands for a module and its children, except for children with an entry of their own.
const RANKS: &[&str] = &[
    "clock",
    "crash_point",
    "digest",
    "http::rate_limit_status",
    "http::request_log",
    "http::error",
    "database",
    "spending::price",
    "config",
    "redis",
    "spending::plan",
    "spending::quota",
    "identity::email",
    "identity::password::memory",
    "identity::password",
    "identity::verified",
    "identity::token",
    "identity::user",
    "identity::credential",
    "api_keys::sync_state",
    "cache::single_flight",
    "app",
    "http::network",
    "http::cors",
    "http::extract",
    "http::idempotency",
    "identity::session",
    "spending::subject",
    "spending::usage",
    "spending::redis_keys",
    "spending::open_hold",
    "spending::budgets",
    "spending::ledger",
    "cache",
    "identity::rate_limit",
    "identity::session_cache",
    "identity::auth",
    "notify::mail",
    "notify::alert",
    "spending::admission",
    "spending::current_session",
    "conversation",
    "api_keys",
    "billing",
    "spending::reconcile",
    "http::observe",
    "http::serve",
    "routes::messages::message",
    "routes::messages::events",
    "routes::messages::request",
    "routes::messages::stop",
    "routes::messages::reply_rows",
    "routes::messages::sse",
    "routes::messages::reply",
    "routes::messages::preflight",
    "routes::messages::follow_ups",
    "routes::messages::resume",
    "routes::messages::producer",
    "routes::messages::send",
    "routes",
    // Folders that only declare their modules.
    "http",
    "identity",
    "notify",
    "spending",
];

/// Names that only some files may contain: the name, the folders that are searched, and the exceptions.
const CONFINED: &[(&str, &[&str], &[&str])] = &[
    ("tokio_postgres::", DEPLOYED, &["lib/pooled-postgres/"]),
    ("deadpool_postgres::", DEPLOYED, &["lib/pooled-postgres/"]),
    (
        "vercel_runtime::",
        DEPLOYED,
        &["lib/iconoclash/src/http/serve.rs"],
    ),
    (
        "env::var",
        DEPLOYED,
        &[
            "lib/iconoclash/src/config.rs",
            // Runs in the tests of statements only.
            "lib/pooled-postgres/src/schema_check.rs",
        ],
    ),
];

/// Everything that is compiled into a function.
const DEPLOYED: &[&str] = &[
    "api",
    "lib/claude/src",
    "lib/iconoclash/src",
    "lib/pooled-postgres",
    "lib/stripe/src",
    "lib/upstash-redis-rs/src",
];

#[test]
fn files_are_short_enough_to_be_read() {
    let root = root();
    let files = ["api", "lib", "tests"]
        .iter()
        .flat_map(|folder| rust_files(&root.join(folder)));

    let too_long: Vec<String> = files
        .map(|file| (fs::read_to_string(&file).unwrap().lines().count(), file))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, file)| format!("{} has {lines} lines", file.display()))
        .collect();
    assert!(too_long.is_empty(), "split these: {too_long:#?}");
}

#[test]
fn each_tool_is_used_in_one_place() {
    let root = root();

    for (name, folders, exceptions) in CONFINED {
        for file in folders
            .iter()
            .flat_map(|folder| rust_files(&root.join(folder)))
        {
            let path = file.strip_prefix(&root).unwrap().to_str().unwrap();
            let is_exception = exceptions.iter().any(|allowed| path.starts_with(allowed));
            let is_named = fs::read_to_string(&file).unwrap().contains(name);
            assert!(
                is_exception || !is_named,
                "{path} names {name}, which only {exceptions:?} may"
            );
        }
    }
}

#[test]
fn imports_go_downhill() {
    let modules = Modules::read();
    let mut uphill = BTreeSet::new();

    for (module, text) in &modules.texts {
        let higher = |imported: &String| rank(imported) > rank(module);
        for imported in modules.imports(module, text).into_iter().filter(higher) {
            uphill.insert(format!("{module} imports {imported}"));
        }
    }
    assert!(
        uphill.is_empty(),
        "imports that go up (see RANKS): {uphill:#?}"
    );
}

#[test]
fn every_rank_is_of_a_module_that_exists() {
    let modules = Modules::read();

    for entry in RANKS {
        assert!(
            modules.texts.contains_key(*entry),
            "there is no module {entry}"
        );
    }
}

#[test]
fn slices_never_import_each_other() {
    let modules = Modules::read();
    let slice = |module: &str| {
        let name = module.strip_prefix("routes::")?.split("::").next()?;
        Some(name.to_owned())
    };
    let slices: BTreeSet<String> = modules
        .texts
        .keys()
        .filter_map(|module| slice(module))
        .collect();
    assert!(slices.len() >= 8, "{slices:?}");

    for (module, text) in &modules.texts {
        let Some(own) = slice(module) else { continue };
        for imported in modules.imports(module, text) {
            let other = slice(&imported).filter(|other| *other != own);
            assert_eq!(other, None, "{module} imports {imported}");
        }
    }
}

#[test]
fn imports_are_found_however_they_are_written() {
    let texts = ["a", "a::b", "a::c", "d", "d::e"].map(|module| (module.to_owned(), String::new()));
    let modules = Modules {
        texts: texts.into(),
    };
    let check = |module: &str, text: &str, expected: &[&str]| {
        let imports: Vec<String> = modules.imports(module, text).into_iter().collect();
        assert_eq!(imports, expected, "{text}");
    };

    check(
        "d",
        "use crate::a::{\n  self,\n  b::{self, X},\n  c,\n};",
        &["a", "a::b", "a::c"],
    );
    check(
        "a::b",
        "use super::{c::{Y}, Z,};\nuse std::fmt;",
        &["a", "a::c"],
    );
    check("a::b", "pub(crate) use crate::d::e::T as U;", &["d::e"]);
    check(
        "a::b",
        "fn f() { crate::d::e::g(super::c::h()) }",
        &["a::c", "d::e"],
    );
    check(
        "d",
        "let x = e::f();\n// crate::a::b\nother::e::f();",
        &["d::e"],
    );
    check(
        "d",
        "mod e;\n#[cfg(test)]\nmod tests {\n    use crate::a::b;\n}\n",
        &[],
    );
}

/// The modules of `lib/iconoclash/src` by path, such as `routes::messages::send`, with their text.
struct Modules {
    texts: BTreeMap<String, String>,
}

impl Modules {
    fn read() -> Self {
        let source = root().join("lib/iconoclash/src");
        let texts = rust_files(&source).into_iter().map(|file| {
            let path = file.strip_prefix(&source).unwrap().with_extension("");
            let module = path.to_str().unwrap().replace('/', "::");
            (module, fs::read_to_string(&file).unwrap())
        });
        Self {
            texts: texts.filter(|(module, _)| module != "lib").collect(),
        }
    }

    /// The other modules that `text`, the text of `module`, names outside of its unit tests.
    fn imports(&self, module: &str, text: &str) -> BTreeSet<String> {
        let code = without_comments(without_tests(text));
        let mut paths = Vec::new();

        let mut rest = code.as_str();
        while let Some(at) = rest.find("use ") {
            let before = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
            let is_keyword = before.is_empty() || before.starts_with("pub");
            scan_paths(&rest[..at], &mut paths);
            rest = &rest[at + "use ".len()..];
            if is_keyword && let Some(end) = rest.find(';') {
                flatten(&rest[..end], "", &mut paths);
                rest = &rest[end..];
            }
        }
        scan_paths(rest, &mut paths);

        let found = paths.iter().filter_map(|path| self.resolve(module, path));
        found.filter(|imported| imported != module).collect()
    }

    /// The module of a path that starts with `crate`, `super`, `self` or a child of `module`.
    fn resolve(&self, module: &str, path: &str) -> Option<String> {
        let mut base: Vec<&str> = module.split("::").collect();
        let mut segments = path.split("::").peekable();

        match *segments.peek()? {
            "crate" => {
                segments.next();
                base.clear();
            }
            "self" => drop(segments.next()),
            "super" => {
                while segments.next_if_eq(&"super").is_some() {
                    base.pop();
                }
            }
            child if self.texts.contains_key(&format!("{module}::{child}")) => {}
            _ => return None,
        }

        base.extend(segments);
        (1..=base.len())
            .rev()
            .map(|length| base[..length].join("::"))
            .find(|module| self.texts.contains_key(module))
    }
}

/// The position of a module's entry in [`RANKS`].
fn rank(module: &str) -> usize {
    let is_covered = |entry: &str| {
        let rest = module.strip_prefix(entry);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let covering = (0..RANKS.len()).filter(|at| is_covered(RANKS[*at]));
    covering
        .max_by_key(|at| RANKS[*at].len())
        .unwrap_or_else(|| panic!("{module} has no rank: add it to RANKS"))
}

/// The text before the module of unit tests.
fn without_tests(text: &str) -> &str {
    let mut starts = text.match_indices("#[cfg(test)]\n").map(|(at, _)| at);
    let is_module = |at: &usize| {
        let item = text[*at..].lines().find(|line| !line.starts_with("#["));
        item.is_some_and(|item| item.starts_with("mod "))
    };
    starts.find(is_module).map_or(text, |at| &text[..at])
}

fn without_comments(text: &str) -> String {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// Collects the paths of a `use` tree: `a::{b, c::{self, d}}` has `a::b`, `a::c::self` and `a::c::d`.
fn flatten(tree: &str, prefix: &str, paths: &mut Vec<String>) {
    let mut depth = 0;
    let branches = tree.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });

    let branches = branches.map(str::trim).filter(|branch| !branch.is_empty());
    for branch in branches {
        match branch.split_once('{') {
            Some((start, group)) => {
                let group = group.strip_suffix('}').unwrap_or(group);
                flatten(group, &format!("{prefix}{start}"), paths);
            }
            None => {
                let path = branch.split_whitespace().next().unwrap_or_default();
                paths.push(format!("{prefix}{path}"));
            }
        }
    }
}

/// Collects the paths in code, such as `crate::clock::epoch_ms` in an expression.
fn scan_paths(code: &str, paths: &mut Vec<String>) {
    let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    paths.extend(words.filter(|word| word.contains("::")).map(str::to_owned));
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// The Rust files of a folder and its folders, in order.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
