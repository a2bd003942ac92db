//! Requests to the loaded programs, run through BPF_PROG_RUN.

use std::{io, path::PathBuf, sync::Arc};

use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use bytemuck::{Pod, Zeroable};
use firewall_common::abi::{CTL_FLOWS, CtlCounts, CtlFlow, CtlRequest, FlowKey6, ctl_op, programs};

use super::{Instance, causes, hooks::os_error, loader::Loaded};

/// `struct xdp_md` of `linux/bpf.h`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl XdpMd {
    /// The context of a frame of `len` bytes that comes in through `ifindex`.
    #[must_use]
    pub fn arriving(ifindex: u32, len: usize) -> Self {
        Self {
            data_end: len as u32,
            ingress_ifindex: ifindex,
            ..Self::zeroed()
        }
    }
}

/// The shortest frame that the kernel runs a program on.
const MIN_FRAME: usize = 14;

/// A request fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object holds no such program.
    #[error("program {0} is not loaded")]
    Missing(&'static str),
    /// The kernel refuses to run it.
    #[error("program {program} cannot be run: {cause}")]
    Run {
        /// Its name.
        program: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// Its pin cannot be opened.
    #[error(
        "the control program {} cannot be opened: {cause}; run `pinhole run` again, which pins it",
        path.display()
    )]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel says.
        cause: String,
    },
    /// Not a frame.
    #[error("a frame of {0} bytes cannot be run again")]
    Frame(usize),
}

/// A handle to the loaded programs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Loaded>);

impl Requests {
    /// Over the loaded programs, which live as long as any handle does.
    #[must_use]
    pub const fn new(loaded: Arc<Loaded>) -> Self {
        Self(loaded)
    }

    /// Deletes those of the flows that are expired. Returns how many were:
    /// the program looks again, so a flow that came alive meanwhile stays.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn expire(&self, keys: &[FlowKey6]) -> Result<u32, Error> {
        self.control(ctl_op::EXPIRE, keys)
    }

    /// Marks the flows blind: the helper opens nothing more for them. Returns
    /// how many there were.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn blind(&self, keys: &[FlowKey6]) -> Result<u32, Error> {
        self.control(ctl_op::BLIND, keys)
    }

    /// As [`admit`], and marks the flows as expected by the helper.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn expected(&self, keys: &[FlowKey6]) -> Result<u32, Error> {
        self.control(ctl_op::EXPECTED, keys)
    }

    /// Takes the helper away from the flows: their payload is not queued any
    /// more. Returns how many there were.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn unhelp(&self, keys: &[FlowKey6]) -> Result<u32, Error> {
        self.control(ctl_op::UNHELP, keys)
    }

    /// As [`Control::delete`], through the loaded program.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn delete(&self, flows: &[CtlFlow]) -> Result<u32, Error> {
        control(self.program(programs::CTL)?, ctl_op::DELETE, flows)
    }

    /// Adds to the counts of flows. `counts.op` and `counts.count` are set here.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn count(&self, counts: &CtlCounts) -> Result<(), Error> {
        count(self.program(programs::CTL)?, counts)
    }

    /// Runs a held frame again as if it had just come in through `ifindex`,
    /// with holding off. Must be called inside the interface's network
    /// namespace. The verdict shows in the counters only.
    ///
    /// # Errors
    ///
    /// [`Error`]; the interface may have gone.
    pub fn reinject(&self, ifindex: u32, frame: &[u8]) -> Result<(), Error> {
        if frame.len() < MIN_FRAME {
            return Err(Error::Frame(frame.len()));
        }
        let context = XdpMd::arriving(ifindex, frame.len());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        };
        run(
            self.program(programs::REINJECT)?,
            programs::REINJECT,
            options,
        )
        .map(|_| ())
    }

    fn control(&self, op: u32, keys: &[FlowKey6]) -> Result<u32, Error> {
        let flows: Vec<_> = keys.iter().copied().map(CtlFlow::any).collect();
        control(self.program(programs::CTL)?, op, &flows)
    }

    fn program(&self, name: &'static str) -> Result<&Xdp, Error> {
        loaded_program(&self.0, name)
    }
}

fn count(program: &Xdp, counts: &CtlCounts) -> Result<(), Error> {
    let request = CtlCounts {
        op: ctl_op::COUNT,
        count: 0,
        ..*counts
    };
    let options = TestRunOptions {
        data_in: Some(bytemuck::bytes_of(&request)),
        ..TestRunOptions::new()
    };
    run(program, programs::CTL, options).map(|_| ())
}

/// Admits flows that shadow mode let in although they were refused. Returns how
/// many there were.
///
/// # Errors
///
/// [`Error`].
pub fn admit(loaded: &Loaded, keys: &[FlowKey6]) -> Result<u32, Error> {
    let flows: Vec<_> = keys.iter().copied().map(CtlFlow::any).collect();
    control(
        loaded_program(loaded, programs::CTL)?,
        ctl_op::ADMIT,
        &flows,
    )
}

fn loaded_program<'a>(loaded: &'a Loaded, name: &'static str) -> Result<&'a Xdp, Error> {
    let program = loaded.ebpf.program(name);
    program
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing(name))
}

/// The control program by its pin: for commands, which work without an agent.
#[derive(Debug)]
pub struct Control(Xdp);

impl Control {
    /// That of an attached instance.
    ///
    /// # Errors
    ///
    /// [`Error::Pin`].
    pub fn open(instance: &Instance) -> Result<Self, Error> {
        let path = instance.pin(programs::CTL_PIN);
        let program = Xdp::from_pin(&path, XdpAttachType::Interface);
        program.map(Self).map_err(|error| Error::Pin {
            path,
            cause: causes(&error),
        })
    }

    /// Deletes the flows, alive as they may be, unless their entries are of other
    /// incarnations by now. Returns how many were deleted.
    ///
    /// # Errors
    ///
    /// [`Error::Run`].
    pub fn delete(&self, flows: &[CtlFlow]) -> Result<u32, Error> {
        control(&self.0, ctl_op::DELETE, flows)
    }

    /// As [`Requests::count`].
    ///
    /// # Errors
    ///
    /// [`Error::Run`].
    pub fn count(&self, counts: &CtlCounts) -> Result<(), Error> {
        count(&self.0, counts)
    }
}

fn control(program: &Xdp, op: u32, flows: &[CtlFlow]) -> Result<u32, Error> {
    let mut done = 0;
    for some in flows.chunks(CTL_FLOWS) {
        let mut request = CtlRequest {
            op,
            count: some.len() as u32,
            ..CtlRequest::zeroed()
        };
        request.flows[..some.len()].copy_from_slice(some);
        let options = TestRunOptions {
            data_in: Some(bytemuck::bytes_of(&request)),
            ..TestRunOptions::new()
        };
        done += run(program, programs::CTL, options)?;
    }
    Ok(done)
}

fn run(program: &Xdp, name: &'static str, options: TestRunOptions<'_>) -> Result<u32, Error> {
    program
        .test_run(options)
        .map(|result| result.return_value)
        .map_err(|error| Error::Run {
            program: name,
            cause: os_error(&error),
        })
}
