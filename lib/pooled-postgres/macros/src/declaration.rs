//! The grammar of `sql!` and what it expands to.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Field, GenericArgument, Ident, Lifetime, LitStr, PathArguments, Result, Token, Type,
    Visibility, braced,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
    token::Brace,
};

use crate::placeholders;

/// All statements of one `sql!`.
pub(crate) struct Declarations(Vec<Declaration>);

/// `/// doc  pub(crate) read Name { field: Type, … } -> Row = "text";`
struct Declaration {
    attributes: Vec<Attribute>,
    visibility: Visibility,
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

        let keyword: Ident = input.parse()?;
        let access = match keyword.to_string().as_str() {
            "read" => Ident::new("Read", keyword.span()),
            "write" => Ident::new("Write", keyword.span()),
            _ => {
                return Err(syn::Error::new(
                    keyword.span(),
                    "expected `read` or `write`",
                ));
            }
        };
        let name = input.parse()?;

        let mut params = Punctuated::<Field, Token![,]>::new();
        if input.peek(Brace) {
            let content;
            braced!(content in input);
            params = content.parse_terminated(Field::parse_named, Token![,])?;
        }

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
            params: params.into_iter().collect(),
            row,
            text,
        })
    }
}

impl Declarations {
    pub(crate) fn expand(self) -> Result<TokenStream> {
        self.0.into_iter().map(Declaration::expand).collect()
    }
}

impl Declaration {
    fn expand(mut self) -> Result<TokenStream> {
        let mut borrows = false;
        for param in &mut self.params {
            param.vis = self.visibility.clone();
            borrows |= name_lifetimes(&mut param.ty);
        }

        let Self {
            attributes,
            visibility,
            access,
            name,
            params,
            row,
            text,
        } = self;

        let names: Vec<&Ident> = params
            .iter()
            .filter_map(|param| param.ident.as_ref())
            .collect();
        let known: Vec<String> = names.iter().map(ToString::to_string).collect();
        let numbered = placeholders::number(&text.value(), &known)
            .map_err(|problem| syn::Error::new(text.span(), problem))?;

        let lifetime = borrows.then(|| quote!(<'a>));
        let elided = borrows.then(|| quote!(<'_>));
        let test = format_ident!("{}", snake_case(&name.to_string()));
        let types = params.iter().map(|param| static_type(&param.ty));
        let body = match params.is_empty() {
            true => quote!(;),
            false => quote!({ #(#params,)* }),
        };

        Ok(quote! {
            #(#attributes)*
            #visibility struct #name #lifetime #body

            impl ::pooled_postgres::Statement for #name #elided {
                type Row = #row;
                const NAME: &'static str = stringify!(#name);
                const TEXT: &'static str = #numbered;
                const ACCESS: ::pooled_postgres::Access = ::pooled_postgres::Access::#access;
                const PARAMS: &'static [::pooled_postgres::Type] =
                    &[#(<#types as ::pooled_postgres::Param>::TYPE),*];

                fn values(&self) -> ::std::vec::Vec<&(dyn ::pooled_postgres::ToSql + Sync)> {
                    ::std::vec![#(&self.#names),*]
                }
            }

            #[cfg(test)]
            mod #test {
                #[tokio::test]
                async fn agrees_with_the_schema() {
                    ::pooled_postgres::schema_check::agrees::<super::#name #elided>().await;
                }
            }
        })
    }
}

/// Writes `'a` where a reference leaves its lifetime out; true if there is any reference.
fn name_lifetimes(kind: &mut Type) -> bool {
    visit_lifetimes(kind, &Lifetime::new("'a", proc_macro2::Span::call_site()))
}

/// The same type with `'static`, for a constant.
fn static_type(kind: &Type) -> Type {
    let mut kind = kind.clone();
    visit_lifetimes(
        &mut kind,
        &Lifetime::new("'static", proc_macro2::Span::call_site()),
    );
    kind
}

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
                    if let GenericArgument::Type(inner) = argument {
                        borrows |= visit_lifetimes(inner, lifetime);
                    }
                }
            }
            borrows
        }
        _ => false,
    }
}

/// `IdByEmail` → `id_by_email`, the name of the statement's test.
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
    use super::{Declarations, snake_case};

    fn expand(source: &str) -> Result<String, String> {
        let declarations: Declarations =
            syn::parse_str(source).map_err(|error| error.to_string())?;
        let tokens = declarations.expand().map_err(|error| error.to_string())?;
        Ok(tokens.to_string().replace(' ', ""))
    }

    #[test]
    fn a_statement_becomes_a_struct_with_its_parameters() {
        let expanded = expand(
            "pub read ByEmail { email: Option<&str>, id: Uuid } -> Row = \"select :id, :email\";",
        )
        .unwrap();
        for expected in [
            "pubstructByEmail<'a>{pubemail:Option<&'astr>,pubid:Uuid,}",
            "TEXT:&'staticstr=\"select$2,$1\"",
            "<Option<&'staticstr>as::pooled_postgres::Param>::TYPE",
            "vec![&self.email,&self.id]",
            "modby_email",
        ] {
            assert!(expanded.contains(expected), "{expected} in {expanded}");
        }
    }

    #[test]
    fn without_parameters_it_is_a_unit() {
        let expanded = expand("write Clear -> () = \"delete from t\";").unwrap();
        assert!(expanded.contains("structClear;"), "{expanded}");
    }

    #[test]
    fn mistakes_are_compile_errors() {
        let unknown = expand("write Clear -> () = \"delete from t where id = :id\";");
        assert!(unknown.unwrap_err().contains("`:id` is not a parameter"));
        let keyword = expand("change Clear -> () = \"delete from t\";");
        assert_eq!(keyword.unwrap_err(), "expected `read` or `write`");
    }

    #[test]
    fn test_modules_are_named_in_snake_case() {
        assert_eq!(snake_case("IdByEmail"), "id_by_email");
    }
}
