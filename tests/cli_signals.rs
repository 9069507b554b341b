//! Ctrl-C, and a reader that goes away.
#![cfg(unix)]

mod cli_support;

use cli_support::{Written, checkpoint, names, run, scratch, tidbit};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// Sending a signal races with the end of the process; one of these attempts must win.
const ATTEMPTS: usize = 10;

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_ends_a_generation_with_its_statistics() {
    for _ in 0..ATTEMPTS {
        let mut child = spawn(&mut run(["-p", "Once", "-n", "500", "--ignore-eos", "--threads", "1"]));
        let mut first = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        let code = output.status.code();
        let written = Written::from(output);
        assert!(written.stderr.contains("tokens/s"), "{}", written.stderr);
        assert!(!written.stderr.contains("panicked") && !written.stderr.contains("error"), "{}", written.stderr);
        assert!(written.stdout.ends_with('\n'), "{:?}", written.stdout);
        if code == Some(130) {
            return;
        }
        assert_eq!(code, Some(0));
    }
    panic!("no signal came in time");
}

#[test]
fn ctrl_c_ends_a_conversion_and_leaves_nothing() {
    for _ in 0..ATTEMPTS {
        let out = scratch();
        let mut convert = tidbit(["convert", "--quant", "q4"]);
        let mut child = spawn(convert.arg(checkpoint()).arg("-o").arg(out.path().join("m.tidbit")));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.starts_with("converting")));
        interrupt(&child);
        let rest: Vec<String> = lines.collect();
        let code = child.wait().unwrap().code();
        assert!(!rest.iter().any(|line| line.contains("panicked") || line.contains("error")), "{rest:?}");
        if code == Some(130) {
            assert_eq!(names(out.path()), [] as [&str; 0], "something was left behind");
            return;
        }
        assert_eq!(code, Some(0));
    }
    panic!("no signal came in time");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = spawn(&mut run(["-p", "Once", "-n", "500", "--ignore-eos"]));
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
}
