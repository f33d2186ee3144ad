//! Tries what the egress knobs need, on the loopback link of a namespace that has been made for it.

use std::io;

use super::{
    filter::Key,
    object::{self, Class},
    route::{self, Refused, RouteSocket},
};

/// Which kinds this kernel takes; what it said to the others.
#[derive(Clone, Debug)]
pub(in crate::kernel) struct Probe {
    pub htb: Result<(), String>,
    pub tbf: Result<(), String>,
    pub u32: Result<(), String>,
}

/// Tries each kind. Only for a namespace that holds nothing else.
pub(in crate::kernel) fn probe() -> io::Result<Probe> {
    let socket = RouteSocket::open()?;
    let index = route::link_index(&socket, "lo").map_err(|refused| refused.source)?;
    let index = index.ok_or_else(|| io::Error::other("the namespace has no loopback link"))?;
    let tbf = object::put_tbf(&socket, index, 1_000_000, true).and_then(|()| object::delete_root(&socket, index));
    let class = Class { minor: 1, parent: 0, rate: 1_000_000, ceil: 1_000_000 };
    let htb = object::create_htb(&socket, index, 1).and_then(|()| object::put_class(&socket, index, class));
    let key = Key { offset: 0, mask: u32::MAX, value: 0 };
    let u32 = match &htb {
        Ok(()) => object::create_filter(&socket, index, 1, &[key]).map_err(told),
        Err(_) => Err("it cannot be tried without HTB".to_owned()),
    };
    Ok(Probe { htb: htb.map_err(told), tbf: tbf.map_err(told), u32 })
}

fn told(Refused { source, message }: Refused) -> String {
    message.map_or_else(|| source.to_string(), |message| format!("{source} ({message})"))
}
