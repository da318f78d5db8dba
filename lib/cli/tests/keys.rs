//! `iconoclash keys` as a process: its help pages, and how it reads a secret.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

fn iconoclash(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_iconoclash"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    // The process may end without reading.
    let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_task_has_a_help_page() {
    let page = text(&iconoclash(&["keys", "--help"], "").stdout);
    for task in ["add", "list", "drain", "resume", "revoke", "test", "reseal"] {
        assert!(page.contains(&format!("\n  {task} ")), "{task}: {page}");
        let ran = iconoclash(&["keys", task, "--help"], "");
        assert!(
            ran.status.success() && text(&ran.stdout).len() > 100,
            "{task}"
        );
    }
    assert!(page.contains("To rotate a key"), "{page}");
}

#[test]
fn a_secret_is_read_from_standard_input_only() {
    let ran = iconoclash(&["keys", "add", "main", "sk-ant-secret"], "");
    assert!(
        !ran.status.success() && text(&ran.stderr).contains("unexpected argument"),
        "{ran:?}"
    );

    let empty = iconoclash(&["keys", "add", "main"], "\n");
    assert!(
        text(&empty.stderr).contains("no secret was read"),
        "{empty:?}"
    );

    let without_settings = iconoclash(&["keys", "add", "main"], "sk-ant-secret\n");
    let error = text(&without_settings.stderr);
    assert!(
        !without_settings.status.success() && error.contains("CREDENTIALS_KEY is not set"),
        "{error}"
    );
    assert!(!error.contains("sk-ant-secret"), "{error}");
}

#[test]
fn a_missing_setting_is_named() {
    for (arguments, missing) in [
        (&["keys", "list"][..], "DATABASE_URL is not set"),
        (&["keys", "drain", "main"], "DATABASE_URL is not set"),
        (&["keys", "reseal"], "CREDENTIALS_KEY is not set"),
    ] {
        let ran = iconoclash(arguments, "");
        assert!(
            !ran.status.success() && text(&ran.stderr).contains(missing),
            "{arguments:?}: {ran:?}"
        );
    }
}
