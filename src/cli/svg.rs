//! What pictures have in common: a head with colours for light and dark, and text that is safe in XML.

/// The beginning of a picture of this size. It stands for itself: no fonts, scripts or styles from elsewhere.
pub fn head(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <style>\n\
         .paper {{ fill: #ffffff }} .ink {{ fill: #1c1e21 }} .faint {{ fill: #6a7078 }} .line {{ stroke: #d8dce1 }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         .paper {{ fill: #16181b }} .ink {{ fill: #e8eaed }} .faint {{ fill: #9aa1a9 }} .line {{ stroke: #33383e }}\n\
         }}\n\
         </style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n"
    )
}

/// A text as XML has it, in an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Not allowed in XML at all.
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}
