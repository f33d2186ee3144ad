//! Tests on the real kernel: version 1 cgroups of our own (`sage-test-<pid>-<name>`), and network namespaces that belong
//! to one thread and vanish with it.
#![expect(clippy::disallowed_methods, reason = "tests act on the kernel")]

mod cgroups;
mod egress;
mod recovery;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use sage_common::{CgroupPath, LinkName};

use super::capability::own_namespace;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 3] = ["cpu", "cpuset", "freezer"];

/// A cgroup in every version 1 hierarchy we need, removed at the end whatever happens.
struct TestCgroup {
    path: CgroupPath,
    children: Vec<Child>,
}

impl TestCgroup {
    fn new(name: &str) -> Self {
        let path = format!("sage-test-{}-{name}", std::process::id());
        let cgroup = Self { path: CgroupPath::try_from(path).expect("valid"), children: Vec::new() };
        for controller in CONTROLLERS {
            fs::create_dir(cgroup.dir(controller)).expect("mkdir");
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let parents = fs::read_to_string(Path::new(CGROUP_ROOT).join("cpuset").join(file)).expect("read");
            fs::write(cgroup.dir("cpuset").join(file), parents).expect("write");
        }
        cgroup
    }

    fn dir(&self, controller: &str) -> PathBuf {
        Path::new(CGROUP_ROOT).join(controller).join(self.path.as_str())
    }

    fn file(&self, controller: &str, name: &str) -> String {
        fs::read_to_string(self.dir(controller).join(name)).expect("read").trim().to_owned()
    }

    /// A process in the cgroup that does nothing, with `stdin` as its input.
    fn spawn(&mut self, stdin: Stdio) -> u32 {
        let child = Command::new("sleep").arg("60").stdin(stdin).spawn().expect("sleep");
        let pid = child.id();
        self.children.push(child);
        for controller in CONTROLLERS {
            fs::write(self.dir(controller).join("cgroup.procs"), pid.to_string()).expect("move the process");
        }
        pid
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // A frozen process cannot die.
        let _ = fs::write(self.dir("freezer").join("freezer.state"), "THAWED");
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for controller in CONTROLLERS {
            // The kernel lets a cgroup go a moment after its last process.
            for _ in 0..100 {
                match fs::remove_dir(self.dir(controller)) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        thread::sleep(Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Runs `test` on a thread in a network namespace of its own.
fn in_own_namespace(test: impl FnOnce() + Send + 'static) {
    let outcome = thread::spawn(move || {
        own_namespace().expect("unshare");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a tool in this thread's network namespace; its output.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a command")).args(words).output().expect("run");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A pair of veth links, both up.
fn veth(name: &str) -> LinkName {
    run(&format!("ip link add {name} type veth peer name {name}-peer"));
    run(&format!("ip link set {name} up"));
    run(&format!("ip link set {name}-peer up"));
    LinkName::try_from(name.to_owned()).expect("valid")
}

fn root_qdisc(link: &LinkName) -> String {
    run(&format!("tc qdisc show dev {link} root"))
}
