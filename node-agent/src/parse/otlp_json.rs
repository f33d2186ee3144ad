//! OTLP/JSON: the same spans from `ExportTraceServiceRequest` in JSON.
//!
//! Field names in camel case and in snake case, 64-bit numbers as strings or numbers, enumerations as numbers or names,
//! ids in hexadecimal. Nothing is kept but the span at hand: resource spans are read in place, once for their resource
//! and once for their spans, because the resource may stand behind them. An error is placed at the start of the resource
//! spans it lies in.

use std::{borrow::Cow, fmt, marker::PhantomData};

use sage_common::{Span, Timestamp};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor as SerdeVisitor},
};
use serde_json::value::RawValue;

use super::{
    Fault, ParseError,
    fields::{ATTRIBUTES_MAX, Builder, Check, RawSpan, ResourceFields, Tally, Value, Visitor},
    otlp,
};

/// Hands every span of the request to `sink`.
///
/// # Errors
///
/// [`ParseError`] when the request does not read as OTLP/JSON; `sink` has not been called then.
pub fn decode(request: &[u8], sink: impl FnMut(Span)) -> Result<Tally, ParseError> {
    let text =
        std::str::from_utf8(request).map_err(|error| ParseError { fault: Fault::Utf8, at: error.valid_up_to() })?;
    walk(text, &mut Check)?;
    let mut builder = Builder::new(sink);
    walk(text, &mut builder)?;
    Ok(builder.tally)
}

fn walk(request: &str, visitor: &mut impl Visitor) -> Result<(), ParseError> {
    let mut start = 0; // of the resource spans at hand
    let result = each(request, ["resourceSpans", "resource_spans"], &mut |resource_spans: &RawValue| {
        start = resource_spans.get().as_ptr() as usize - request.as_ptr() as usize;
        self::resource_spans(resource_spans.get(), visitor)
    });
    result.map_err(|error| {
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or_default();
        ParseError { fault: Fault::Json(message.to_owned()), at: start }
    })
}

fn resource_spans(text: &str, visitor: &mut impl Visitor) -> serde_json::Result<()> {
    let mut fields = ResourceFields::default();
    let mut skipped = 0;
    let found: ResourceOnly<'_> = serde_json::from_str(text)?;
    if let Some(resource) = found.resource {
        each(
            resource.get(),
            ["attributes", "attributes"],
            &mut counted(&mut skipped, |attribute: Attribute<'_>| {
                fields.set(&attribute.key, attribute.value);
            }),
        )?;
    }
    visitor.attributes_skipped(skipped);
    visitor.resource();
    each(text, ["scopeSpans", "scope_spans"], &mut |scope_spans: &RawValue| {
        each(scope_spans.get(), ["spans", "spans"], &mut |span: JsonSpan<'_>| {
            visitor.attributes_skipped(span.skipped);
            visitor.span(&fields, &span.raw);
            Ok(())
        })
    })
}

/// A resource-spans object without its spans.
#[derive(Deserialize)]
struct ResourceOnly<'a> {
    #[serde(borrow, default)]
    resource: Option<&'a RawValue>,
}

/// Calls `visit` for every element of the array `names` of the JSON object `text`; absent or null is empty.
fn each<'a, T: Deserialize<'a>>(
    text: &'a str,
    names: [&'static str; 2],
    visit: &mut dyn FnMut(T) -> serde_json::Result<()>,
) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut failed = None;
    let result = ArrayIn { names, visit, failed: &mut failed, of: PhantomData }.deserialize(&mut deserializer);
    match failed {
        Some(error) => Err(error),
        None => result.and_then(|()| deserializer.end()),
    }
}

/// Wraps an attribute visitor so that only [`ATTRIBUTES_MAX`] reach it; the rest is counted in `skipped`.
fn counted<'s, 'a>(
    skipped: &'s mut u64,
    mut visit: impl FnMut(Attribute<'a>) + 's,
) -> impl FnMut(Attribute<'a>) -> serde_json::Result<()> + 's {
    let mut count = 0;
    move |attribute| {
        count += 1;
        if count > ATTRIBUTES_MAX {
            *skipped += 1;
        } else {
            visit(attribute);
        }
        Ok(())
    }
}

/// Reads one array of an object, element by element.
struct ArrayIn<'v, T> {
    names: [&'static str; 2],
    visit: &'v mut dyn FnMut(T) -> serde_json::Result<()>,
    failed: &'v mut Option<serde_json::Error>,
    of: PhantomData<T>,
}

impl<'a, T: Deserialize<'a>> DeserializeSeed<'a> for ArrayIn<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a, T: Deserialize<'a>> SerdeVisitor<'a> for ArrayIn<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {}", self.names[0])
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { names, visit, failed, .. } = self;
        while let Some(key) = map.next_key::<Text<'a>>()? {
            if names.contains(&key.0.as_ref()) {
                map.next_value_seed(Elements { visit: &mut *visit, failed: &mut *failed, of: PhantomData })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Elements<'v, T> {
    visit: &'v mut dyn FnMut(T) -> serde_json::Result<()>,
    failed: &'v mut Option<serde_json::Error>,
    of: PhantomData<T>,
}

impl<'a, T: Deserialize<'a>> DeserializeSeed<'a> for Elements<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a, T: Deserialize<'a>> SerdeVisitor<'a> for Elements<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            if let Err(error) = (self.visit)(element) {
                *self.failed = Some(error);
                return Err(A::Error::custom("rejected"));
            }
        }
        Ok(())
    }
}

/// Text, borrowed where it has no escapes.
#[derive(Clone, Debug, Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowing;
        impl<'a> SerdeVisitor<'a> for Borrowing {
            type Value = Text<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_unit<E>(self) -> Result<Text<'a>, E> {
                Ok(Text::default())
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_any(Borrowing)
    }
}

/// A 64-bit number or an enumeration: a number, digits in a string, or a name.
#[derive(Clone, Debug, Default)]
enum Number<'a> {
    #[default]
    Absent,
    Unsigned(u64),
    Signed(i64),
    Name(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Number<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'a> SerdeVisitor<'a> for Any {
            type Value = Number<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or a string")
            }

            fn visit_unit<E>(self) -> Result<Number<'a>, E> {
                Ok(Number::Absent)
            }

            fn visit_u64<E>(self, number: u64) -> Result<Number<'a>, E> {
                Ok(Number::Unsigned(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Number<'a>, E> {
                Ok(Number::Signed(number))
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Number<'a>, E> {
                Ok(Number::of_text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Number<'a>, E> {
                Ok(Number::of_text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'a> Number<'a> {
    fn of_text(text: Cow<'a, str>) -> Self {
        match (text.parse(), text.parse()) {
            (Ok(number), _) => Self::Unsigned(number),
            (_, Ok(number)) => Self::Signed(number),
            _ => Self::Name(text),
        }
    }

    fn time<E: Error>(&self) -> Result<Timestamp, E> {
        match self {
            Self::Absent => Ok(Timestamp::default()),
            Self::Unsigned(nanos) => Ok(otlp::micros(*nanos)),
            Self::Signed(_) | Self::Name(_) => Err(E::custom("a time must be a number of nanoseconds")),
        }
    }

    /// The number, or the position of the name in `names`; zero for anything else.
    fn code(&self, names: &[&str]) -> i32 {
        match self {
            Self::Absent | Self::Signed(_) => 0,
            Self::Unsigned(number) => i32::try_from(*number).unwrap_or(0),
            Self::Name(name) => names.iter().position(|known| known == name).unwrap_or(0) as i32,
        }
    }
}

pub(super) const KINDS: [&str; 6] = [
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];

pub(super) const STATUS_CODES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

/// One span, with the number of attributes that were stepped over.
struct JsonSpan<'a> {
    raw: RawSpan<'a>,
    skipped: u64,
}

/// A span's own members; its attributes are read apart, one by one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members<'a> {
    #[serde(borrow, default, alias = "trace_id")]
    trace_id: Text<'a>,
    #[serde(borrow, default, alias = "span_id")]
    span_id: Text<'a>,
    #[serde(borrow, default, alias = "parent_span_id")]
    parent_span_id: Text<'a>,
    #[serde(borrow, default, alias = "trace_state")]
    trace_state: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    kind: Number<'a>,
    #[serde(borrow, default, alias = "start_time_unix_nano")]
    start_time_unix_nano: Number<'a>,
    #[serde(borrow, default, alias = "end_time_unix_nano")]
    end_time_unix_nano: Number<'a>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Deserialize)]
struct Status<'a> {
    #[serde(borrow, default)]
    code: Number<'a>,
}

impl<'a> Deserialize<'a> for JsonSpan<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let members: Members<'a> = serde_json::from_str(text).map_err(D::Error::custom)?;
        let mut raw = RawSpan {
            trace: hex(&members.trace_id.0),
            id: hex(&members.span_id.0).map(u64::from_be_bytes),
            parent: match members.parent_span_id.0.as_ref() {
                "" => Some(0),
                text => hex(text).map(u64::from_be_bytes),
            },
            name: members.name.0,
            side: otlp::side(members.kind.code(&KINDS)),
            start: members.start_time_unix_nano.time()?,
            end: members.end_time_unix_nano.time()?,
            tracestate: members.trace_state.0,
            is_error: members.status.is_some_and(|status| otlp::is_error_code(status.code.code(&STATUS_CODES))),
            ..RawSpan::default()
        };
        let mut skipped = 0;
        let fields = &mut raw.fields;
        each(
            text,
            ["attributes", "attributes"],
            &mut counted(&mut skipped, |attribute: Attribute<'a>| {
                fields.set(&attribute.key, attribute.value);
            }),
        )
        .map_err(D::Error::custom)?;
        Ok(Self { raw, skipped })
    }
}

/// One attribute.
#[derive(Debug)]
struct Attribute<'a> {
    key: Cow<'a, str>,
    value: Value<'a>,
}

impl<'a> Deserialize<'a> for Attribute<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Pair<'a> {
            #[serde(borrow, default)]
            key: Text<'a>,
            #[serde(borrow, default)]
            value: Option<AnyValue<'a>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct AnyValue<'a> {
            #[serde(borrow, default, alias = "string_value")]
            string_value: Option<Text<'a>>,
            #[serde(borrow, default, alias = "int_value")]
            int_value: Option<Number<'a>>,
            #[serde(default, alias = "bool_value")]
            bool_value: Option<bool>,
        }
        let Pair { key, value } = Pair::deserialize(deserializer)?;
        let value = match value {
            Some(AnyValue { string_value: Some(text), .. }) => Value::Text(text.0),
            Some(AnyValue { int_value: Some(Number::Unsigned(number)), .. }) => {
                i64::try_from(number).map_or(Value::Other, Value::Int)
            }
            Some(AnyValue { int_value: Some(Number::Signed(number)), .. }) => Value::Int(number),
            Some(AnyValue { bool_value: Some(flag), .. }) => Value::Bool(flag),
            _ => Value::Other,
        };
        Ok(Self { key: key.0, value })
    }
}

/// What each byte is worth as a hexadecimal digit; 255 when it is none.
const DIGITS: [u8; 256] = {
    let mut digits = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        let lower = b"0123456789abcdef"[digit];
        digits[lower as usize] = digit as u8;
        digits[lower.to_ascii_uppercase() as usize] = digit as u8;
        digit += 1;
    }
    digits
};

/// `N` bytes in hexadecimal, upper or lower case.
pub(super) fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    let mut seen = 0; // the high bits of a byte that is no digit
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        seen |= high | low;
        *byte = high << 4 | low;
    }
    (seen < 16).then_some(bytes)
}
