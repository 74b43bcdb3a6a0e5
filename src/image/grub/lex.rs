//! GRUB's scripts as words. Source: the GRUB manual, "Shell-like scripting".

/// A stretch of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// In double quotes its value is one word whatever is in it.
    Var {
        name: String,
        quoted: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub pieces: Vec<Piece>,
    /// Quotes were in it: it is a word even if nothing is left of it, and never a keyword.
    pub quoted: bool,
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    Word(Word),
    /// A semicolon or the end of a line.
    End,
}

/// Tokens of a script, or the line that they break off in.
pub fn tokens(text: &str) -> Result<Vec<Token>, usize> {
    let mut tokens = Vec::new();
    let mut lexer = Lexer { rest: text.chars().peekable(), line: 1 };
    while let Some(&c) = lexer.rest.peek() {
        match c {
            '\n' | ';' => {
                lexer.next();
                tokens.push(Token::End);
            }
            c if c.is_whitespace() => {
                lexer.next();
            }
            '#' => while lexer.rest.next_if(|c| *c != '\n').is_some() {},
            '\\' => {
                // A line that goes on in the next one.
                let word = lexer.word()?;
                if !word.pieces.is_empty() {
                    tokens.push(Token::Word(word));
                }
            }
            _ => tokens.push(Token::Word(lexer.word()?)),
        }
    }
    Ok(tokens)
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn word(&mut self) -> Result<Word, usize> {
        let mut word = Word { pieces: Vec::new(), quoted: false, line: self.line };
        let start = self.line;
        while let Some(&c) = self.rest.peek() {
            match c {
                c if c.is_whitespace() || c == ';' => break,
                '\'' => {
                    self.next();
                    word.quoted = true;
                    loop {
                        match self.next().ok_or(start)? {
                            '\'' => break,
                            c => word.push(c),
                        }
                    }
                }
                '"' => {
                    self.next();
                    word.quoted = true;
                    self.quoted(&mut word, start)?;
                }
                '\\' => {
                    self.next();
                    match self.next() {
                        None => {}
                        Some('\n') if word.pieces.is_empty() => break,
                        Some('\n') => {}
                        Some(c) => word.push(c),
                    }
                }
                '$' => {
                    self.next();
                    self.variable(&mut word, false);
                }
                _ => {
                    self.next();
                    word.push(c);
                }
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, word: &mut Word, start: usize) -> Result<(), usize> {
        loop {
            match self.next().ok_or(start)? {
                '"' => return Ok(()),
                '\\' => match self.next().ok_or(start)? {
                    c @ ('"' | '\\' | '$') => word.push(c),
                    '\n' => {}
                    c => {
                        word.push('\\');
                        word.push(c);
                    }
                },
                '$' => self.variable(word, true),
                c => word.push(c),
            }
        }
    }

    fn variable(&mut self, word: &mut Word, quoted: bool) {
        let mut name = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            while let Some(c) = self.rest.next_if(|c| *c != '}' && *c != '\n') {
                name.push(c);
            }
            self.rest.next_if_eq(&'}');
        } else if let Some(c) = self.rest.next_if(|c| c.is_ascii_digit() || "?@*#".contains(*c)) {
            name.push(c);
        } else {
            while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                name.push(c);
            }
        }
        if name.is_empty() {
            word.push('$');
        } else {
            word.pieces.push(Piece::Var { name, quoted });
        }
    }
}

impl Word {
    fn push(&mut self, c: char) {
        match self.pieces.last_mut() {
            Some(Piece::Text(text)) => text.push(c),
            _ => self.pieces.push(Piece::Text(c.into())),
        }
    }

    /// What it is, if that does not depend on variables or quotes.
    pub fn plain(&self) -> Option<&str> {
        match (&self.pieces[..], self.quoted) {
            ([Piece::Text(text)], false) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let show = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Var { name, quoted } => format!("<{name}{}>", if *quoted { "!" } else { "" }),
        };
        let each = tokens(text).unwrap();
        let each = each.iter().map(|token| match token {
            Token::End => ";".to_owned(),
            Token::Word(word) => word.pieces.iter().map(show).collect(),
        });
        each.collect()
    }

    #[test]
    fn quotes_variables_and_comments() {
        assert_eq!(words("set a=\"b ${c}\" # d\n"), ["set", "a=b <c!>", ";"]);
        assert_eq!(words("x$y'z $q'\\ w ${v}"), ["x<y>z $q w", "<v>"]);
        assert_eq!(words("a \\\n b; c"), ["a", "b", ";", "c"]);
        assert_eq!(words("$ \"\" $?"), ["$", "", "<?>"]);
        assert_eq!(tokens("a\n'b"), Err(2));
        assert_eq!(tokens("\"b"), Err(1));
    }
}
