//! Configurations for the lab's nodes.

use crate::lab::Node;

/// Like [`super::super::kernel::NftFirewall`]: a router that lets FTP's
/// control connection through from the client's side to the server's, and
/// otherwise replies only.
#[must_use]
pub fn gateway(node: Node, helper: bool) -> String {
    // fw-a has the client at in0; fw-b has it beyond out0.
    let (client, server) = match node {
        Node::FwA => ("inside", "outside"),
        _ => ("outside", "inside"),
    };
    format!(
        "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
         [zones.outside]\ninterfaces = [\"out0\"]\n\
         [[rule]]\nname = \"ftp\"\nfrom = \"{client}\"\nto = \"{server}\"\n\
         proto = \"tcp\"\ndport = [21]\naction = \"accept\"\n{}",
        helper_line(helper),
    )
}

/// A router that lets everything out of the inside, and only replies in.
#[must_use]
pub fn open_gateway() -> String {
    "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
     [zones.outside]\ninterfaces = [\"out0\"]\n\
     [[rule]]\nname = \"out\"\nfrom = \"inside\"\naction = \"accept\"\n"
        .to_owned()
}

/// An FTP server's own firewall: port 21 is open, nothing else is.
#[must_use]
pub fn server_host(helper: bool) -> String {
    format!(
        "[zones.outside]\ninterfaces = [\"eth0\"]\n\
         [[rule]]\nname = \"ftp\"\nfrom = \"outside\"\nto = \"host\"\n\
         proto = \"tcp\"\ndport = [21]\naction = \"accept\"\n{}",
        helper_line(helper),
    )
}

/// A client's own firewall: everything out, nothing in but replies. With the
/// helper this is pinhole's embedded default.
#[must_use]
pub fn client_host(helper: bool) -> String {
    let ftp = if helper {
        "[[rule]]\nname = \"ftp\"\nfrom = \"host\"\nproto = \"tcp\"\ndport = [21]\n\
         action = \"accept\"\nhelper = \"ftp\"\n"
    } else {
        ""
    };
    format!(
        "[zones.outside]\ninterfaces = [\"eth0\"]\n{ftp}\
         [[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n"
    )
}

fn helper_line(helper: bool) -> &'static str {
    if helper { "helper = \"ftp\"\n" } else { "" }
}
