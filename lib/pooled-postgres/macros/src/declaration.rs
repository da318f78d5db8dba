//! The grammar of `sql!` and its expansion.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{
    Attribute, Error, Field, GenericArgument, Ident, Lifetime, LitStr, PathArguments, Result,
    Token, Type, Visibility, braced,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    token::Brace,
};

use crate::placeholders;

mod keyword {
    syn::custom_keyword!(read);
    syn::custom_keyword!(write);
}

/// All statements of one `sql!`.
pub(crate) struct Declarations(Vec<Declaration>);

/// `/// doc  pub(crate) read Name { field: Type, … } -> Row = "text";`
struct Declaration {
    attributes: Vec<Attribute>,
    visibility: Visibility,
    /// `Read` or `Write`.
    access: Ident,
    name: Ident,
    params: Vec<Field>,
    row: Type,
    text: LitStr,
}

impl Parse for Declarations {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut declarations = Vec::new();
        while !input.is_empty() {
            declarations.push(input.parse()?);
        }
        Ok(Self(declarations))
    }
}

impl Parse for Declaration {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let visibility = input.parse()?;
        let access = parse_access(input)?;
        let name = input.parse()?;

        let params = match input.peek(Brace) {
            true => parse_params(input)?,
            false => Vec::new(),
        };

        input.parse::<Token![->]>()?;
        let row = input.parse()?;
        input.parse::<Token![=]>()?;
        let text = input.parse()?;
        input.parse::<Token![;]>()?;

        Ok(Self {
            attributes,
            visibility,
            access,
            name,
            params,
            row,
            text,
        })
    }
}

fn parse_access(input: ParseStream<'_>) -> Result<Ident> {
    let next = input.lookahead1();
    if next.peek(keyword::read) {
        let keyword: keyword::read = input.parse()?;
        Ok(Ident::new("Read", keyword.span))
    } else if next.peek(keyword::write) {
        let keyword: keyword::write = input.parse()?;
        Ok(Ident::new("Write", keyword.span))
    } else {
        Err(next.error())
    }
}

fn parse_params(input: ParseStream<'_>) -> Result<Vec<Field>> {
    let content;
    braced!(content in input);
    let params = content.parse_terminated(Field::parse_named, Token![,])?;

    for param in &params {
        if !matches!(param.vis, Visibility::Inherited) {
            let message = "a parameter has the visibility of its statement";
            return Err(Error::new_spanned(&param.vis, message));
        }
    }
    Ok(params.into_iter().collect())
}

impl Declarations {
    pub(crate) fn expand(self) -> Result<TokenStream> {
        self.0.into_iter().map(Declaration::expand).collect()
    }
}

impl Declaration {
    fn expand(mut self) -> Result<TokenStream> {
        let numbered = self.numbered_text()?;

        let mut borrows = false;
        for param in &mut self.params {
            param.vis = self.visibility.clone();
            borrows |= visit_lifetimes(&mut param.ty, &lifetime("'a"));
            document(param);
        }

        let Self {
            attributes,
            visibility,
            access,
            name,
            params,
            row,
            ..
        } = self;
        let fields = params.iter().map(|param| &param.ident);
        let types = params.iter().map(|param| static_type(&param.ty));
        let elided = borrows.then(|| quote!(<'_>));
        let test = test_module(&name);

        // rustc reports dead code only where the caller wrote it, so the struct has the span of its name.
        let span = name.span();
        let lifetime = borrows.then(|| quote_spanned!(span=> <'a>));
        let structure = match params.is_empty() {
            true => quote_spanned!(span=> struct #name;),
            false => quote_spanned!(span=> struct #name #lifetime { #(#params,)* }),
        };

        Ok(quote! {
            #(#attributes)*
            #visibility #structure

            impl ::pooled_postgres::Statement for #name #elided {
                type Row = #row;
                const NAME: &'static str = ::std::stringify!(#name);
                const TEXT: &'static str = #numbered;
                const ACCESS: ::pooled_postgres::Access = ::pooled_postgres::Access::#access;
                const PARAMS: &'static [::pooled_postgres::Type] =
                    &[#(<#types as ::pooled_postgres::Param>::TYPE),*];

                fn values(&self) -> ::std::vec::Vec<&(dyn ::pooled_postgres::ToSql + Sync)> {
                    ::std::vec![#(&self.#fields),*]
                }
            }

            #[cfg(test)]
            mod #test {
                #[::tokio::test]
                async fn agrees_with_the_schema() {
                    ::pooled_postgres::schema_check::agrees::<super::#name #elided>().await;
                }
            }
        })
    }

    /// The text with numbered placeholders. Fails where text and parameters do not match.
    fn numbered_text(&self) -> Result<LitStr> {
        let names: Vec<Ident> = self
            .params
            .iter()
            .filter_map(|param| param.ident.as_ref())
            .map(IdentExt::unraw)
            .collect();
        let known: Vec<String> = names.iter().map(ToString::to_string).collect();

        let numbered = placeholders::number(&self.text.value(), &known)
            .map_err(|problem| Error::new(self.text.span(), problem))?;

        match numbered.unused.first() {
            Some(at) => {
                let name = &names[*at];
                let message = format!("the text of `{}` does not use `:{name}`", self.name);
                Err(Error::new(name.span(), message))
            }
            None => Ok(LitStr::new(&numbered.text, self.text.span())),
        }
    }
}

/// Gives a parameter without a doc comment one, so that public statements need not document each parameter.
fn document(param: &mut Field) {
    let is_documented = param
        .attrs
        .iter()
        .any(|attribute| attribute.path().is_ident("doc"));
    if let Some(name) = &param.ident
        && !is_documented
    {
        let text = format!("The parameter `:{}`.", name.unraw());
        param.attrs.push(syn::parse_quote!(#[doc = #text]));
    }
}

fn lifetime(name: &str) -> Lifetime {
    Lifetime::new(name, Span::call_site())
}

/// The same type with `'static` for every lifetime, for use in a constant.
fn static_type(kind: &Type) -> Type {
    let mut kind = kind.clone();
    visit_lifetimes(&mut kind, &lifetime("'static"));
    kind
}

/// Sets every lifetime in a type, written or elided. Returns whether there is any.
fn visit_lifetimes(kind: &mut Type, lifetime: &Lifetime) -> bool {
    match kind {
        Type::Reference(reference) => {
            reference.lifetime = Some(lifetime.clone());
            visit_lifetimes(&mut reference.elem, lifetime);
            true
        }
        Type::Slice(slice) => visit_lifetimes(&mut slice.elem, lifetime),
        Type::Group(group) => visit_lifetimes(&mut group.elem, lifetime),
        Type::Path(path) => {
            let mut borrows = false;
            for segment in &mut path.path.segments {
                let PathArguments::AngleBracketed(generic) = &mut segment.arguments else {
                    continue;
                };
                for argument in &mut generic.args {
                    match argument {
                        GenericArgument::Type(inner) => borrows |= visit_lifetimes(inner, lifetime),
                        GenericArgument::Lifetime(written) => {
                            *written = lifetime.clone();
                            borrows = true;
                        }
                        _ => {}
                    }
                }
            }
            borrows
        }
        _ => false,
    }
}

/// The name of the module of a statement's test: `id_by_email` for `IdByEmail`.
fn test_module(statement: &Ident) -> Ident {
    let snake = snake_case(&statement.unraw().to_string());
    let is_keyword = syn::parse_str::<Ident>(&snake).is_err();
    match is_keyword {
        true => format_ident!("{snake}_statement"),
        false => format_ident!("{snake}"),
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use quote::format_ident;

    use super::{Declarations, test_module};

    fn expand(source: &str) -> Result<String, String> {
        let declarations: Declarations =
            syn::parse_str(source).map_err(|error| error.to_string())?;
        let tokens = declarations.expand().map_err(|error| error.to_string())?;
        Ok(tokens.to_string().replace(' ', ""))
    }

    #[track_caller]
    fn contains(source: &str, expected: &[&str]) {
        let expanded = expand(source).unwrap();
        for part in expected {
            assert!(expanded.contains(part), "{part} in {expanded}");
        }
    }

    #[track_caller]
    fn fails(source: &str, expected: &str) {
        assert_eq!(expand(source).unwrap_err(), expected);
    }

    #[test]
    fn a_statement_becomes_a_struct_with_its_parameters() {
        contains(
            "pub read ByEmail { email: Option<&str>, id: Uuid } -> Row = \"select :id, :email\";",
            &[
                "pubstructByEmail<'a>{",
                "pubemail:Option<&'astr>,",
                "pubid:Uuid,",
                "TEXT:&'staticstr=\"select$2,$1\"",
                "<Option<&'staticstr>as::pooled_postgres::Param>::TYPE",
                "vec![&self.email,&self.id]",
                "modby_email",
            ],
        );
    }

    #[test]
    fn a_statement_without_parameters_becomes_a_unit_struct() {
        contains("write Clear -> () = \"delete from t\";", &["structClear;"]);
        contains(
            "write Clear {} -> () = \"delete from t\";",
            &["structClear;"],
        );
    }

    #[test]
    fn a_parameter_may_be_named_like_a_keyword() {
        contains(
            "read Find { r#type: &str } -> i64 = \"select :type\";",
            &["r#type:&'astr", "\"select$1\"", "&self.r#type"],
        );
    }

    #[test]
    fn a_parameter_keeps_its_doc_comment() {
        let documented = "read Find { #[doc = \"Mine.\"] id: i64 } -> i64 = \"select :id\";";
        contains(documented, &["#[doc=\"Mine.\"]id:i64"]);

        let undocumented = "read Find { id: i64 } -> i64 = \"select :id\";";
        contains(undocumented, &["#[doc=\"Theparameter`:id`.\"]id:i64"]);
    }

    #[test]
    fn written_lifetimes_become_those_of_the_struct() {
        contains(
            "read Find { id: Key<'_>, name: &'static str } -> i64 = \"select :id, :name\";",
            &["id:Key<'a>", "name:&'astr", "<Key<'static>as"],
        );
    }

    #[test]
    fn mistakes_are_compile_errors() {
        fails(
            "write Clear -> () = \"delete from t where id = :id\";",
            "`:id` is not a parameter of this statement, which has none",
        );
        fails(
            "read Find { id: i64, name: &str } -> i64 = \"select :id\";",
            "the text of `Find` does not use `:name`",
        );
        fails(
            "read Find { pub id: i64 } -> i64 = \"select :id\";",
            "a parameter has the visibility of its statement",
        );
        fails(
            "change Clear -> () = \"delete from t\";",
            "expected `read` or `write`",
        );
        fails("read Find = \"select 1\";", "expected `->`");
        fails("read Find -> i64 = TEXT;", "expected string literal");
    }

    #[test]
    fn test_modules_are_named_in_snake_case() {
        for (statement, module) in [
            ("IdByEmail", "id_by_email"),
            ("Find", "find"),
            ("Move", "move_statement"),
        ] {
            assert_eq!(test_module(&format_ident!("{statement}")), module);
        }
    }
}
