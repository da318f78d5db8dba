//! Named placeholders in the text of a statement.

use crate::lexer::Token;

/// A text whose named placeholders are replaced by numbers.
#[derive(Debug, PartialEq)]
pub(crate) struct Numbered {
    pub(crate) text: String,
    /// The positions of the names that the text does not use.
    pub(crate) unused: Vec<usize>,
}

/// Replaces `:name` by `$n`, where `n` is the position of the name in `names`, counted from 1.
///
/// Fails for a name that is not in `names`, for `$1`, and for a quote or comment without an end.
pub(crate) fn number(text: &str, names: &[String]) -> Result<Numbered, String> {
    let mut numbered = String::with_capacity(text.len());
    let mut used = vec![false; names.len()];
    let mut follows_value = false;
    let mut rest = text;

    while !rest.is_empty() {
        let token = Token::first(rest)?;
        match &token {
            Token::Placeholder(placeholder) => {
                let at = names.iter().position(|name| *name == placeholder[1..]);
                match at {
                    Some(_) if follows_value => return Err(glued(placeholder)),
                    Some(at) => {
                        used[at] = true;
                        numbered.push_str(&format!("${}", at + 1));
                    }
                    // The upper bound of a slice such as `x[1:n]`, where `n` is a column.
                    None if follows_value => numbered.push_str(placeholder),
                    None => return Err(unknown(placeholder, names)),
                }
            }
            Token::Positional(number) => {
                return Err(format!(
                    "use a named parameter such as `:user` instead of `{number}`"
                ));
            }
            other => numbered.push_str(other.text()),
        }

        follows_value = token.ends_value();
        rest = &rest[token.text().len()..];
    }

    let unused = (0..names.len()).filter(|at| !used[*at]).collect();
    Ok(Numbered {
        text: numbered,
        unused,
    })
}

fn glued(placeholder: &str) -> String {
    format!(
        "put a space before `{placeholder}`; \
         as the upper bound of an array slice, write `: {placeholder}`"
    )
}

fn unknown(placeholder: &str, names: &[String]) -> String {
    let known = match names {
        [] => "which has none".to_owned(),
        names => format!("which has `:{}`", names.join("`, `:")),
    };
    format!("`{placeholder}` is not a parameter of this statement, {known}")
}

#[cfg(test)]
mod tests {
    use super::{Numbered, number};

    fn numbered(text: &str, names: &[&str]) -> Result<Numbered, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        number(text, &names)
    }

    #[track_caller]
    fn becomes(text: &str, names: &[&str], expected: &str) {
        let numbered = numbered(text, names).unwrap();
        assert_eq!(numbered.text, expected);
        assert!(numbered.unused.is_empty(), "{:?}", numbered.unused);
    }

    #[track_caller]
    fn fails(text: &str, names: &[&str], expected: &str) {
        assert_eq!(numbered(text, names).unwrap_err(), expected);
    }

    #[test]
    fn names_become_numbers_in_the_order_of_the_parameters() {
        becomes("select 1", &[], "select 1");
        becomes(
            "select :b::text, :a_1 + :b, f(:a_1,:b)",
            &["a_1", "b"],
            "select $2::text, $1 + $2, f($1,$2)",
        );
    }

    #[test]
    fn literals_and_comments_stay() {
        becomes(
            "select ':a', \":a\", 'it''s :a', 1::int -- :a\n, :a /* :a /* :a */ :a */",
            &["a"],
            "select ':a', \":a\", 'it''s :a', 1::int -- :a\n, $1 /* :a /* :a */ :a */",
        );
        becomes(
            "select e'\\':a', $$:a $1$$, $q$:a$q$, u&'\\00e9:a', :a",
            &["a"],
            "select e'\\':a', $$:a $1$$, $q$:a$q$, u&'\\00e9:a', $1",
        );
        becomes(
            "select ' é', é$1, type'e'",
            &[],
            "select ' é', é$1, type'e'",
        );
    }

    #[test]
    fn other_colons_stay() {
        becomes("select x[1:2], x[:2]", &[], "select x[1:2], x[:2]");
        becomes("select x[a:b], x[(a):b]", &[], "select x[a:b], x[(a):b]");
        becomes("select x[1: :n]", &["n"], "select x[1: $1]");
        becomes("select f(a := 1, b:=:b)", &["b"], "select f(a := 1, b:=$1)");
    }

    #[test]
    fn unused_names_are_reported() {
        assert_eq!(
            numbered("select :b", &["a", "b", "c"]).unwrap().unused,
            [0, 2]
        );
    }

    #[test]
    fn mistakes_are_explained() {
        fails(
            "select :b",
            &["a", "c"],
            "`:b` is not a parameter of this statement, which has `:a`, `:c`",
        );
        fails(
            "select :User",
            &[],
            "`:User` is not a parameter of this statement, which has none",
        );
        fails(
            "select $12",
            &["a"],
            "use a named parameter such as `:user` instead of `$12`",
        );
        fails(
            "select x[1:n]",
            &["n"],
            "put a space before `:n`; as the upper bound of an array slice, write `: :n`",
        );
        fails("select 'a", &[], "no end of the quote or comment `'a…`");
    }
}
