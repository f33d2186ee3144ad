//! What every [`KernelInterface`] must do, so that whatever is proven on the recording kernel holds on the real one.

use sage_common::{Knob, Setting};

use super::KernelInterface;

/// A knob that exists, and two settings that it takes and that differ from what it holds.
pub(super) struct Case {
    pub knob: Knob,
    pub settings: [Setting; 2],
}

/// Holds `kernel` to the contract. It ends with every knob as it was.
pub(super) fn holds(kernel: &mut impl KernelInterface, cases: &[Case], missing: &[Knob]) {
    for Case { knob, settings } in cases {
        reads_back_what_is_written(kernel, knob, settings);
        refuses_what_does_not_fit(kernel, knob);
    }
    restores_what_was_captured_in_any_order(kernel, cases);
    for knob in missing {
        let error = kernel.capture(knob).expect_err("nothing is there");
        assert!(error.is_gone(), "{knob}: {error}");
    }
}

fn reads_back_what_is_written(kernel: &mut impl KernelInterface, knob: &Knob, settings: &[Setting; 2]) {
    kernel.supports(knob.kind()).expect("the kind is there");
    let before = kernel.capture(knob).expect("capture");
    assert_eq!(kernel.read(knob).expect("read"), before.setting, "{knob}: capture and read agree");
    for setting in settings {
        assert_ne!(before.setting, *setting, "{knob}: the case would show nothing");
        // Twice: writing what is in force changes nothing.
        for _ in 0..2 {
            kernel.write(knob, setting).expect("write");
            assert_eq!(kernel.read(knob).expect("read back"), *setting, "{knob}");
        }
    }
    kernel.restore(knob, &before).expect("restore");
    assert_eq!(kernel.capture(knob).expect("capture"), before, "{knob}");
}

fn refuses_what_does_not_fit(kernel: &mut impl KernelInterface, knob: &Knob) {
    let before = kernel.capture(knob).expect("capture");
    for setting in [Setting::Cores(Some(1)), Setting::Weight(0), Setting::Frozen(true), Setting::Rate(Some(1))] {
        if !setting.fits(knob) {
            kernel.write(knob, &setting).expect_err("it does not fit");
        }
    }
    assert_eq!(kernel.capture(knob).expect("capture"), before, "{knob}: a refused write leaves no trace");
}

fn restores_what_was_captured_in_any_order(kernel: &mut impl KernelInterface, cases: &[Case]) {
    let captured: Vec<_> = cases.iter().map(|case| kernel.capture(&case.knob).expect("capture")).collect();
    for case in cases {
        kernel.write(&case.knob, &case.settings[0]).expect("write");
    }
    for case in cases {
        assert_eq!(kernel.read(&case.knob).expect("read"), case.settings[0], "{}: others do not disturb it", case.knob);
    }
    // First come, first restored: the order in which leases run out.
    for (case, before) in cases.iter().zip(&captured) {
        kernel.restore(&case.knob, before).expect("restore");
        // Again, as after a crash between the restore and its record.
        kernel.restore(&case.knob, before).expect("restore again");
    }
    for (case, before) in cases.iter().zip(&captured) {
        assert_eq!(kernel.capture(&case.knob).expect("capture"), *before, "{}", case.knob);
    }
}

mod tests {
    use sage_common::{CgroupPath, CpuList, LinkName};

    use super::*;
    use crate::kernel::{KernelError, RecordingKernel};

    fn cgroup(path: &str) -> CgroupPath {
        CgroupPath::try_from(path.to_owned()).expect("valid")
    }

    fn cpus(cpus: &[u16]) -> Setting {
        Setting::Cpus(CpuList::try_from(cpus.to_vec()).expect("valid"))
    }

    #[test]
    fn the_recording_kernel_keeps_the_contract() {
        let link = LinkName::try_from("eth0".to_owned()).expect("valid");
        let app = || cgroup("app");
        let rate = |mbit: u64| Setting::Rate(Some(mbit * 1_000_000));
        let rows = [
            (
                Knob::CpuQuota { cgroup: app() },
                Setting::Cores(None),
                [500, 1_500].map(|cores| Setting::Cores(Some(cores))),
            ),
            (Knob::CpuWeight { cgroup: app() }, Setting::Weight(100), [1, 10_000].map(Setting::Weight)),
            (Knob::Cpuset { cgroup: app() }, cpus(&[0, 1]), [cpus(&[0]), cpus(&[1])]),
            (Knob::Freeze { cgroup: app() }, Setting::Frozen(false), [Setting::Frozen(true), Setting::Frozen(true)]),
            (Knob::EgressRate { link: link.clone() }, Setting::Rate(None), [rate(10), rate(20)]),
            (Knob::EgressCeiling { link, cgroup: app() }, Setting::Rate(None), [rate(1), rate(2)]),
        ];
        let mut kernel = RecordingKernel::new(rows.iter().map(|(knob, setting, _)| (knob.clone(), setting.clone())));
        let cases = rows.map(|(knob, _, settings)| Case { knob, settings });
        holds(&mut kernel, &cases, &[Knob::CpuQuota { cgroup: cgroup("absent") }]);
    }

    #[test]
    fn the_recording_kernel_fails_as_it_is_told() {
        let knob = Knob::CpuQuota { cgroup: cgroup("app") };
        let mut kernel = RecordingKernel::new([(knob.clone(), Setting::Cores(None))]);
        let half = Setting::Cores(Some(500));

        kernel.refuse.insert(knob.clone());
        let error = kernel.write(&knob, &half).expect_err("refused");
        assert!(error.is_transient() && !error.is_gone(), "{error}");
        kernel.refuse.clear();

        kernel.ignore.insert(knob.clone());
        kernel.write(&knob, &half).expect("taken and ignored");
        assert_eq!(kernel.read(&knob).expect("read"), Setting::Cores(None));
        assert_eq!(kernel.writes, [(knob.clone(), half)]);

        kernel.lacks.insert(knob.kind());
        assert!(matches!(kernel.read(&knob), Err(KernelError::Unavailable { .. })));
    }
}
