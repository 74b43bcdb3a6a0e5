//! GRUB's scripts as statements.

use super::lex::{Token, Word};

/// How deep blocks may lie in each other.
const DEPTH_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    Command(Vec<Word>),
    /// Each condition with what is done if it is the first that holds, and what if none does.
    If {
        branches: Vec<(Vec<Statement>, Vec<Statement>)>,
        otherwise: Vec<Statement>,
    },
    Function {
        name: String,
        body: Vec<Statement>,
    },
    /// `menuentry` or `submenu`.
    Entry {
        submenu: bool,
        words: Vec<Word>,
        body: Vec<Statement>,
        line: usize,
    },
    /// `for`, `while` or `until`, which only running it would tell the end of.
    Loop {
        line: usize,
    },
}

/// The line that cannot be read, and why.
pub type Failure = (usize, &'static str);

pub fn parse(tokens: &[Token]) -> Result<Vec<Statement>, Failure> {
    let mut parser = Parser { rest: tokens, line: 1 };
    let statements = parser.block(&[], 0)?;
    Ok(statements)
}

struct Parser<'a> {
    rest: &'a [Token],
    line: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a Token> {
        let (token, rest) = self.rest.split_first()?;
        self.rest = rest;
        if let Token::Word(word) = token {
            self.line = word.line;
        }
        Some(token)
    }

    /// The keyword that comes next, ends of lines skipped.
    fn keyword(&mut self) -> Option<&'a str> {
        while self.rest.first() == Some(&Token::End) {
            self.next();
        }
        match self.rest.first() {
            Some(Token::Word(word)) => word.plain(),
            _ => None,
        }
    }

    /// Statements up to one of `ends`, which is left to be read; with none, to the end.
    fn block(&mut self, ends: &[&str], depth: usize) -> Result<Vec<Statement>, Failure> {
        if depth > DEPTH_MAX {
            return Err((self.line, "blocks are nested too deeply"));
        }
        let mut statements = Vec::new();
        loop {
            let keyword = self.keyword();
            if keyword.is_some_and(|word| ends.contains(&word)) {
                return Ok(statements);
            }
            if self.rest.is_empty() {
                return if ends.is_empty() { Ok(statements) } else { Err((self.line, "a block has no end")) };
            }
            statements.push(match keyword {
                Some("if") => self.condition(depth)?,
                Some("function") => self.function(depth)?,
                Some("menuentry") => self.entry(false, depth)?,
                Some("submenu") => self.entry(true, depth)?,
                Some("for" | "while" | "until") => self.looping(depth)?,
                Some("then" | "elif" | "else" | "fi" | "do" | "done" | "}") => {
                    return Err((self.line, "a word outside of any block"));
                }
                _ => Statement::Command(self.words()),
            });
        }
    }

    /// Up to the end of the command.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.rest.first() {
            self.next();
            words.push(word.clone());
        }
        words
    }

    fn demand(&mut self, keyword: &str, what: &'static str) -> Result<(), Failure> {
        if self.keyword() == Some(keyword) {
            self.next();
            return Ok(());
        }
        Err((self.line, what))
    }

    fn condition(&mut self, depth: usize) -> Result<Statement, Failure> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            // `if` or `elif`.
            self.next();
            let condition = self.block(&["then"], depth + 1)?;
            self.demand("then", "an `if` has no `then`")?;
            let body = self.block(&["elif", "else", "fi"], depth + 1)?;
            branches.push((condition, body));
            if self.keyword() != Some("elif") {
                break;
            }
        }
        if self.keyword() == Some("else") {
            self.next();
            otherwise = self.block(&["fi"], depth + 1)?;
        }
        self.demand("fi", "an `if` has no `fi`")?;
        Ok(Statement::If { branches, otherwise })
    }

    fn braces(&mut self, depth: usize) -> Result<Vec<Statement>, Failure> {
        self.demand("{", "a `{` is missing")?;
        let body = self.block(&["}"], depth + 1)?;
        self.demand("}", "a `}` is missing")?;
        Ok(body)
    }

    fn function(&mut self, depth: usize) -> Result<Statement, Failure> {
        self.next();
        let name = match self.next() {
            Some(Token::Word(word)) => word.plain().map(str::to_owned),
            _ => None,
        };
        let name = name.ok_or((self.line, "a function has no name"))?;
        Ok(Statement::Function { name, body: self.braces(depth)? })
    }

    fn entry(&mut self, submenu: bool, depth: usize) -> Result<Statement, Failure> {
        self.next();
        let line = self.line;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.rest.first() {
            if word.plain() == Some("{") {
                break;
            }
            self.next();
            words.push(word.clone());
        }
        Ok(Statement::Entry { submenu, words, body: self.braces(depth)?, line })
    }

    fn looping(&mut self, depth: usize) -> Result<Statement, Failure> {
        self.next();
        let line = self.line;
        // What `for` goes through are words, which is what a block of commands is, too.
        self.block(&["do"], depth + 1)?;
        self.demand("do", "a loop has no `do`")?;
        self.block(&["done"], depth + 1)?;
        self.demand("done", "a loop has no `done`")?;
        Ok(Statement::Loop { line })
    }
}

#[cfg(test)]
mod tests {
    use super::super::lex::tokens;
    use super::*;

    fn failure(text: &str) -> Option<usize> {
        parse(&tokens(text).unwrap()).err().map(|(line, _)| line)
    }

    #[test]
    fn blocks_have_ends() {
        let text = "if [ a = b ]; then\n c\nelif d; then e; else f\nfi\nmenuentry 'x' --id y { linux z; }\n\
                    function g { h }\nwhile true; do i; done";
        // As in GRUB, `}` ends a block only where a command can begin.
        assert_eq!(failure(text), Some(7));
        let text = text.replace("{ h }", "{ h\n}");
        let found = parse(&tokens(&text).unwrap()).unwrap();
        assert_eq!(found.len(), 4);
        assert!(
            matches!(&found[0], Statement::If { branches, otherwise } if branches.len() == 2 && otherwise.len() == 1)
        );
        assert!(
            matches!(&found[1], Statement::Entry { submenu: false, words, body, line: 5 } if words.len() == 3 && body.len() == 1)
        );
        assert_eq!(failure("if a; then\nb"), Some(2));
        assert_eq!(failure("fi"), Some(1));
        assert_eq!(failure("menuentry x"), Some(1));
        assert_eq!(failure(&"if ".repeat(100)), Some(1));
    }
}
