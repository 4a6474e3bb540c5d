package eval

import (
	"slices"
	"strings"
)

// The words of RULER's samples: plain English ones of our own choice, where the original takes wonderwords' lists.

// vocabulary is the words that commonWords draws from: adjectives, nouns and verbs, each once, and, since a list for 128K
// tokens needs thousands, compounds of two nouns.
func vocabulary() []string {
	list := slices.Concat(adjectives, nouns, verbs)
	slices.Sort(list)
	list = slices.Compact(list)
	for i, a := range nouns {
		for j := range nouns {
			if i != j && (i+j)%7 == 0 { // some of them, evenly
				list = append(list, a+nouns[j])
			}
		}
	}
	return list
}

// adjectives and nouns make the keys of needles.
var adjectives = strings.Fields(`
amber ancient autumn bitter blunt bold brave brief bright brisk broad broken calm careful cheap clean clear clever cloudy coarse
cold common cool copper crisp crooked curious damp dark deep dense distant dry dull dusty eager early eastern easy empty even
faint fair famous fast fertile fierce fine firm flat fond frail free fresh frozen gentle giant glad golden grand grave gray
green hardy harsh heavy hidden high hollow honest humble icy idle ivory jolly keen kind large late lazy lean light little lively
lonely long loose loud loyal lucky mellow mild modest narrow neat noble northern odd open pale patient plain polite proud quick
quiet rapid rare raw ready rich ripe rough round rural rusty salty secret shallow sharp shy silent silver simple slender slow
small smooth sober soft solid southern spare stark steady steep stern still stout strange strict strong sturdy subtle sunny
sweet swift tall tame tender thick thin tidy timid tiny tough vague vast vivid warm weary western wide wild wise wooden young`)

// nouns, see adjectives.
var nouns = strings.Fields(`
anchor apple apron arch arrow attic axle badge banner barge barn barrel basin basket beacon beam bell bench birch blanket boat
bolt bottle boulder branch brick bridge broom brush bucket button cabin cable camel candle canoe canvas carpet cart castle
cattle cave cedar cellar chain chair chalk cherry chest chimney circle cliff clock cloth cloud coach coast collar column comet
compass copper coral corner cottage cradle crane creek crown cup curtain dagger desert desk diamond dish ditch dome door drum
eagle easel elbow engine fabric falcon farm feather fence ferry field finger flag flame flint flute forest forge fountain fox
frame garden garlic gate glacier glass glove goat grain granite grape guitar hammer harbor harp harvest hatch hawk hedge helmet
hill hinge honey hook horn hotel island jacket jar jewel kettle key kitchen kite ladder lake lamp lantern leaf ledge lemon lever
lily linen lion lock locket loom magnet map maple marble market mast meadow medal melon mill mirror mitten monk moss mountain
needle nest oak oar ocean olive onion orchard otter oven owl paddle palace paper parade path peach pearl pebble pencil pepper
piano pigeon pillar pillow pine pipe planet plank plate plow pond poppy porch pot prairie prism pump quarry quilt rabbit raft
rail rain raven reed ribbon ridge ring river road robin rocket roof root rope rose saddle sail salmon salt sand scarf school
seed shelf shell shield ship shore shovel signal sled smoke snail snow spade spark spider spoon spring stable staff stair star
statue stone stool storm stove straw stream string summit sun swan sword table tent thorn thread thunder tide tiger timber torch
tower trail train tray tree trumpet tulip tunnel turtle valley vase vessel village vine violin wagon wall walnut wave well whale
wheat wheel whistle willow window wing winter wolf wool yard zebra`)

// verbs join the words of lists.
var verbs = strings.Fields(`
accept admire adopt advise agree allow amuse answer appear argue arrange arrive ask attend bake bargain become begin behave
believe belong bend bind blame blend borrow bounce bow build burn bury buy carry carve cast catch cause cheer choose claim climb
collect comb compare complain confess connect consider cook copy cough count cover crawl create cross cure dance dare decide
defend deliver depend describe deserve destroy develop differ dig discover divide draw dream drift drink drive earn eat
encourage enjoy enter escape examine excuse exist expect explain explore fade fail fetch fight fill find finish fit fix float
flow fly fold follow forget forgive gather give glow govern greet grow guard guess guide hang happen hear help hide hire hold
hope hunt hurry imagine improve include inform invent invite join judge jump keep kneel knit know laugh launch lead lean learn
leave lend lift listen live look lose love make march measure meet melt mend mention mix move notice obey observe obtain offer
order owe own paint pardon pass pause perform permit plan plant play point polish pour praise pray prefer prepare present
pretend prevent promise protect prove provide pull punish push reach read receive refuse regret rejoice relax rely remain
remember remind remove repair repeat reply rescue rest return ride roll row run save scatter search seem sell send serve settle
sew shake share shine shout sing sit sleep slip smile solve speak spend spread stand start stay steal stir stop study succeed
suffer suggest support surprise swim swing teach tear tell thank think throw tie touch trade travel treat trust try turn
understand use visit wait wake walk want warn wash watch weave welcome whisper win wish wonder work worry wrap write yield`)
