//! The header of every packet (§5.10.6), as bytes and as values.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;
/// Most bytes of payload in one packet; Linux sends no more.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// Packets of a byte stream, the only kind of socket here.
pub const TYPE_STREAM: u16 = 1;

/// Operations.
pub mod op {
    /// "Connect to me."
    pub const REQUEST: u16 = 1;
    /// "Connected."
    pub const RESPONSE: u16 = 2;
    /// "There is no such connection", or no longer.
    pub const RST: u16 = 3;
    /// The sender will not send, or not receive, any more; see [`super::flag`].
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Nothing but the credit that every packet carries.
    pub const CREDIT_UPDATE: u16 = 6;
    /// "Send me a credit update."
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a SHUTDOWN.
pub mod flag {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet without its payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Kind of socket.
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// Depends on the operation.
    pub flags: u32,
    /// Bytes that the sender is willing to hold for the connection.
    pub buf_alloc: u32,
    /// Bytes of the connection that the sender's program has taken, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads it from its little-endian form.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut reader = Reader(bytes);
        Self {
            src_cid: u64::from_le_bytes(reader.take()),
            dst_cid: u64::from_le_bytes(reader.take()),
            src_port: u32::from_le_bytes(reader.take()),
            dst_port: u32::from_le_bytes(reader.take()),
            len: u32::from_le_bytes(reader.take()),
            kind: u16::from_le_bytes(reader.take()),
            op: u16::from_le_bytes(reader.take()),
            flags: u32::from_le_bytes(reader.take()),
            buf_alloc: u32::from_le_bytes(reader.take()),
            fwd_cnt: u32::from_le_bytes(reader.take()),
        }
    }

    /// Its little-endian form.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The answer "there is no such connection" to a packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// Takes fields off the front; the header's fields are as long as the header.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_come_back(bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
        }
    }

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let mut bytes = [0; HEADER_BYTES];
        (bytes[0], bytes[8], bytes[16], bytes[20], bytes[24]) = (3, 2, 7, 8, 9);
        (bytes[28], bytes[30], bytes[32], bytes[36], bytes[40]) = (1, op::RW as u8, 4, 5, 6);
        let expected = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 7,
            dst_port: 8,
            len: 9,
            kind: TYPE_STREAM,
            op: op::RW,
            flags: 4,
            buf_alloc: 5,
            fwd_cnt: 6,
        };
        assert_eq!(Header::from_bytes(&bytes), expected);
    }
}
