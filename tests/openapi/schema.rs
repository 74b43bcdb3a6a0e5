//! JSON against the schemas of docs/openapi.json. A keyword that is not known here is an error, so
//! nothing that the document says goes unchecked.

use serde_json::{Map, Value};

pub struct Document(Value);

/// Keywords that say nothing about a value.
const PROSE: [&str; 2] = ["description", "default"];

impl From<Value> for Document {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

impl Document {
    pub fn read() -> Self {
        Self(serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap())
    }

    pub fn root(&self) -> &Value {
        &self.0
    }

    /// What `#/...` points to.
    fn at(&self, reference: &str) -> Result<&Value, String> {
        let pointer = reference.strip_prefix('#').ok_or("a reference to elsewhere")?;
        self.0.pointer(pointer).ok_or_else(|| format!("{reference} points nowhere"))
    }

    /// The object itself, or the one that its `$ref` names.
    pub fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.at(reference).unwrap(),
            None => value,
        }
    }

    pub fn schema(&self, name: &str) -> &Value {
        self.at(&format!("#/components/schemas/{name}")).unwrap()
    }

    #[track_caller]
    pub fn holds(&self, name: &str, value: &Value) {
        if let Err(e) = self.check(self.schema(name), value) {
            panic!("not a {name}: {e}\n{value:#}");
        }
    }

    /// Checks a value. A field that no schema speaks of is an error, too.
    pub fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let mut known = Vec::new();
        self.check_part(schema, value, &mut known)?;
        match value.as_object().and_then(|fields| fields.keys().find(|field| !known.contains(field))) {
            Some(field) => Err(format!("the field `{field}` is not documented")),
            None => Ok(()),
        }
    }

    /// Checks a value against one of several schemas that apply to it; tells what fields it knows.
    fn check_part<'a>(
        &'a self,
        schema: &'a Value,
        value: &'a Value,
        known: &mut Vec<&'a String>,
    ) -> Result<(), String> {
        let schema = schema.as_object().ok_or("a schema is an object")?;
        for (keyword, says) in schema {
            let fail = |what: &str| Err(format!("{value}: {what} {says}"));
            let number = || says.as_i64().ok_or_else(|| format!("{keyword} is a number"));
            match keyword.as_str() {
                prose if PROSE.contains(&prose) => {}
                "$ref" => self.check_part(self.at(says.as_str().ok_or("$ref")?)?, value, known)?,
                "allOf" => {
                    for part in says.as_array().ok_or("allOf")? {
                        self.check_part(part, value, known)?;
                    }
                }
                "oneOf" => {
                    let parts = says.as_array().ok_or("oneOf")?;
                    let mut fitting = parts.iter().filter(|part| self.check(part, value).is_ok());
                    match (fitting.next(), fitting.next()) {
                        (Some(part), None) => self.check_part(part, value, known)?,
                        _ => return fail("not one of"),
                    }
                }
                "type" => {
                    let types = says.as_array().cloned().unwrap_or_else(|| vec![says.clone()]);
                    if !types.iter().filter_map(Value::as_str).any(|name| is_of_type(value, name)) {
                        return fail("not of type");
                    }
                }
                "enum" if !says.as_array().ok_or("enum")?.contains(value) => return fail("none of"),
                "const" if says != value => return fail("not"),
                "enum" | "const" => {}
                "required" => {
                    for field in says.as_array().ok_or("required")?.iter().filter_map(Value::as_str) {
                        if value.get(field).is_none() {
                            return Err(format!("the field `{field}` is missing"));
                        }
                    }
                }
                "properties" => {
                    let properties = says.as_object().ok_or("properties")?;
                    for (field, inner) in value.as_object().unwrap_or(&Map::new()) {
                        if let Some((name, schema)) = properties.get_key_value(field) {
                            self.check(schema, inner).map_err(|e| format!("`{field}`: {e}"))?;
                            known.push(name);
                        }
                    }
                }
                // Strict for all objects.
                "additionalProperties" if *says == Value::Bool(false) => {}
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(says, item).map_err(|e| format!("[{index}]: {e}"))?;
                    }
                }
                "pattern" => {
                    if !value.as_str().is_none_or(|text| matches(says.as_str().unwrap_or_default(), text)) {
                        return fail("does not match");
                    }
                }
                "format" if says == "date-time" => {
                    if value.as_str().is_none_or(|text| chrono::DateTime::parse_from_rfc3339(text).is_err()) {
                        return fail("no");
                    }
                }
                "minLength"
                    if value.as_str().is_some_and(|t| (t.chars().count() as i64) < number().unwrap()) =>
                {
                    return fail("shorter than");
                }
                "maxLength"
                    if value.as_str().is_some_and(|t| t.chars().count() as i64 > number().unwrap()) =>
                {
                    return fail("longer than");
                }
                "minItems" if value.as_array().is_some_and(|all| (all.len() as i64) < number().unwrap()) => {
                    return fail("fewer items than");
                }
                "minimum" if value.as_i64().is_some_and(|n| n < number().unwrap()) => {
                    return fail("less than");
                }
                "maximum" if value.as_i64().is_some_and(|n| n > number().unwrap()) => {
                    return fail("more than");
                }
                "minLength" | "maxLength" | "minItems" | "minimum" | "maximum" => drop(number()?),
                _ => return Err(format!("the keyword `{keyword}` is not known to this test")),
            }
        }
        // An object whose fields are not told may have any.
        if !schema.contains_key("properties")
            && schema.get("type").is_some_and(|name| {
                name == "object" || name.as_array().is_some_and(|names| names.contains(&"object".into()))
            })
        {
            known.extend(value.as_object().into_iter().flat_map(|fields| fields.keys()));
        }
        Ok(())
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known to this test"),
    }
}

/// `^[class]{m,n}...$`: what the document's patterns are made of.
fn matches(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.strip_prefix('^').and_then(|p| p.strip_suffix('$')).expect("^...$");
    let mut chars = text.chars().peekable();
    while !rest.is_empty() {
        let (class, after) = rest.strip_prefix('[').and_then(|r| r.split_once(']')).expect("[class]");
        let (bounds, after) = match after.strip_prefix('{') {
            Some(after) => after.split_once('}').expect("{bounds}"),
            None => ("1", after),
        };
        let (least, most) = bounds.split_once(',').unwrap_or((bounds, bounds));
        let (least, most): (usize, usize) = (least.parse().unwrap(), most.parse().unwrap());
        let mut count = 0;
        while count < most && chars.next_if(|c| is_in(class, *c)).is_some() {
            count += 1;
        }
        if count < least {
            return false;
        }
        rest = after;
    }
    chars.next().is_none()
}

fn is_in(class: &str, wanted: char) -> bool {
    let class: Vec<char> = class.chars().collect();
    let mut i = 0;
    while i < class.len() {
        if i + 2 < class.len() && class[i + 1] == '-' {
            if (class[i]..=class[i + 2]).contains(&wanted) {
                return true;
            }
            i += 3;
        } else {
            if class[i] == wanted {
                return true;
            }
            i += 1;
        }
    }
    false
}

#[test]
fn what_is_not_as_documented_is_noticed() {
    let document = Document::read();
    let job = serde_json::json!({"force": true});
    document.holds("Stop", &job);
    for wrong in [r#"{"force": 1}"#, r#"{"forced": true}"#, "[]", "null"] {
        let value = serde_json::from_str(wrong).unwrap();
        assert!(document.check(document.schema("Stop"), &value).is_err(), "{wrong}");
    }
    let name = document.schema("VmName");
    for (text, good) in [("a", true), ("web-1.2_3", true), ("", false), ("-a", false), ("a b", false)] {
        assert_eq!(document.check(name, &text.into()).is_ok(), good, "{text}");
    }
    assert!(document.check(name, &"x".repeat(65).into()).is_err());
    assert!(document.check(document.schema("Clone"), &serde_json::json!({"names": []})).is_err());
}
