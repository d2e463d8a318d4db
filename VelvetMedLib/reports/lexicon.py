"""The words that reports use for findings, places, sides, grades, negation and doubt, as patterns for the parser."""

from __future__ import annotations

import re

from VelvetMedLib.reports.records import Severity, State

FINDING_TERMS: dict[str, str] = {
    "lung_nodule": (
        r"(?:(?:pulmonary|lung|intrapulmonary|parenchymal|subpleural|solid|subsolid|part-solid|ground-glass|perifissural) )*"
        r"(?:micro)?nodul(?:es?|ar (?:opacit(?:y|ies)|densit(?:y|ies)|lesions?|focus|foci))(?! of the (?:thyroid|liver|adrenal))|coin lesions?"
    ),
    "lung_mass": (
        r"(?:(?:pulmonary|lung|intrapulmonary|parenchymal|spiculated|cavitary|hilar|bronchial) )+(?:mass(?:es)?|tumou?rs?|neoplasms?)|mass lesions? of the lung|masses|mass(?! effect)"
    ),
    "consolidation": r"consolidat(?:ions?|ed|ive)(?: opacit(?:y|ies)| changes?)?|air-?space (?:opacit(?:y|ies)|disease)|(?:lobar |lung |pulmonary )?infiltrat(?:es?|ions?)|pneumonia",
    "ground_glass_opacity": r"ground-?\s?glass(?: (?:opacit(?:y|ies)|opacification|densit(?:y|ies)|attenuation|changes?|areas?|haz(?:e|iness)))*(?! nodul)|\bggos?\b",
    "emphysema": r"(?<!subcutaneous )(?<!surgical )emphysema(?:tous)?(?: (?:changes?|destruction|lung))*|bullous (?:changes?|disease)|bullae",
    "atelectasis": r"atelecta(?:sis|ses|tic)(?: (?:changes?|bands?|lung))*|(?:lobar |lung |partial )?collapse of the (?:lung|(?:right|left) (?:upper|lower) lobe|middle lobe)|volume loss of the (?:right|left) (?:upper|lower) lobe",
    "pleural_effusion": r"pleural (?:effusions?|fluid(?: collections?)?|collections?)|hydrothora(?:x|ces)|(?<!pericardial )(?<!joint )effusions?(?! in the pericardi)(?! around the heart)",
    "pneumothorax": r"pneumothora(?:x|ces)|\bptx\b|(?:free )?(?:pleural air|air in the pleural (?:space|cavity))|pleural gas",
    "cardiomegaly": (
        r"cardiomegaly|enlarge(?:d|ment of the) (?:heart|cardiac (?:silhouette|chambers))|cardiac enlargement|"
        r"(?:heart|cardiac (?:silhouette|size)|heart size)(?: is| are| appears?| remains)?(?: \w+ly| not)* (?:enlarged|increased)|(?:increased|enlarged) (?:heart size|cardiac size)|"
        r"dilat(?:ed|ation of the) heart"
    ),
    "pericardial_effusion": r"pericardial (?:effusions?|fluid)(?: collection)?|effusion in the pericardium|fluid (?:around the heart|in the pericardium|in the pericardial (?:sac|space))|haemopericardium|hemopericardium",
    "coronary_calcification": r"(?:coronary(?: arter(?:y|ies|ial))?|lad|rca|circumflex) (?:wall )?(?:calcifications?|calcified plaques?|calcium|atherosclerosis)|calcifications? (?:of|in|along) the (?:left |right )?coronary (?:arteries|artery)|calcified (?:plaques? (?:of|in|along) the )?coronary (?:arteries|artery|plaques?)|coronary arteries (?:are|show|contain)(?: \w+)? calcifi(?:ed|cations?)",
    "aortic_dilatation": (
        r"(?:(?:thoracic|abdominal|ascending|descending|infrarenal|descending thoracic|thoracic ascending) )*aort(?:a|ic)(?: arch)?(?: (?:is|appears|remains))?(?: \w+ly| not)* (?:dilat(?:ed|at?ion)|ectatic|ectasia|aneurysms?|aneurysmal(?: dilat(?:at)?ion)?|widened|widening|enlarge(?:d|ment))|"
        r"(?:aneurysmal )?(?:dilat(?:at)?ion|aneurysms?|ectasia|widening|enlargement) of the (?:(?:thoracic|abdominal|ascending|descending|infrarenal) )*aort(?:a|ic arch)|"
        r"(?:dilated|ectatic|aneurysmal|widened|enlarged) (?:(?:thoracic|abdominal|ascending|descending) )*aort(?:a|ic arch)|\baaa\b|aneurysms?"
    ),
    "lymphadenopathy": (
        r"(?:(?:mediastinal|hilar|thoracic|intrathoracic|paratracheal|subcarinal|axillary|or|and),? )*(?:lymph)?adenopath(?:y|ies)|"
        r"(?:(?:enlarged|pathological|pathologically enlarged|prominent|bulky|abnormal|suspicious) )+(?:(?:mediastinal|hilar|thoracic|intrathoracic|paratracheal|subcarinal|axillary|supraclavicular|or|and),? )*(?:lymph )?(?:nodes?|glands?)|"
        r"(?:lymph )?nodal enlargement|(?:mediastinal |hilar )?(?:lymph )?nodes (?:are|appear) (?:\w+ly )?(?:not )?(?:\w+ly )?enlarged|enlargement of (?:the )?(?:mediastinal |hilar )*(?:lymph )?nodes"
    ),
    "hiatal_hernia": r"(?:(?:sliding|paraesophageal|paraoesophageal|axial|fixed) )*hiat(?:al|us) hernias?(?:tion)?|herniation of the stomach|(?:sliding |paraesophageal |paraoesophageal )+hernias?|intrathoracic stomach|stomach herniat(?:es|ed|ing)",
    "liver_lesion": (
        r"(?:(?:focal|hypodense|hyperdense|hypoattenuating|hypervascular|low-attenuation|solid|cystic|space-occupying) )*(?:liver|hepatic) (?:lesions?|mass(?:es)?|tumou?rs?|metastas[ei]s|cysts?|nodules?)|"
        r"(?:focal |hypodense |hypoattenuating |low-attenuation |space-occupying )*(?:lesions?|mass(?:es)?|metastas[ei]s|nodules?|cysts?) (?:is |are |seen |noted |present )*(?:in|within|of) (?:the |segment \w+ of the |either |the right |the left )*(?:lobe of the )?liver|"
        r"(?:focal |hypodense |hypoattenuating |low-attenuation )+lesions?(?! (?:in|of|within) the (?:left |right )?(?:kidney|spleen|lung))"
    ),
    "hepatic_steatosis": r"(?:hepatic|liver) (?:steatosis|fat(?:ty infiltration| accumulation)?)|steatosis(?: of the liver| hepatis)?|fatty (?:liver|infiltration(?: of the liver)?|change of the liver)|steatotic liver|(?:diffusely |diffuse )?(?:decreased|reduced|low|lowered) (?:liver|hepatic) attenuation|(?:liver|hepatic)(?: parenchymal)? attenuation is (?:diffusely |\w+ly )?(?:decreased|reduced|low|lowered)",
    "renal_cyst": r"(?:(?:simple|cortical|exophytic|parapelvic|bosniak \w+|left|right|bilateral) )*(?:renal|kidney|nephrogenic) (?:cortical )?cysts?|cysts? (?:is |are |seen |noted |present )*(?:in|within|of|arising from) (?:the |either |both |each )?(?:left |right |upper pole of the |lower pole of the )*kidneys?|cortical cysts?|(?:simple )?cysts?",
    "kidney_stone": r"(?:kidney|renal|urinary|ureteral|ureteric|renal calyceal|calyceal)(?: tract)? (?:stones?|calcul(?:us|i)|concretions?)|nephrolith(?:iasis|s?)|(?:stones?|calcul(?:us|i)|concretions?) (?:is |are |seen |noted |present )*(?:in|within|of) (?:the |either |both |each )?(?:left |right |upper pole of the |lower pole of the )*kidneys?|urolithiasis|(?<!gall)(?<!bladder )\bstones?|calcul(?:us|i)",
    "hydronephrosis": r"hydro(?:uretero)?nephrosis|(?:renal )?(?:pelvi)?calyceal dilat(?:at)?ion|dilat(?:ed|at?ion of the) (?:renal )?(?:pelvis|collecting systems?|renal pelvis)|(?:dilated )?collecting systems? (?:is|are|appears?)(?: \w+ly| not)* dilated|pelvicalyectasis|pelviectasis|urinary (?:tract )?obstruction",
    "splenomegaly": r"splenomegaly|(?:spleen|spleen size)(?: is| appears| remains)?(?: \w+ly| not)* (?:enlarged|increased)|enlarge(?:d|ment of the) spleen|splenic enlargement",
    "vertebral_compression": (
        r"(?:(?:vertebral|spinal|osteoporotic|wedge|thoracic|lumbar|anterior|insufficiency)(?: body)? )*(?:compression|wedge) (?:fractures?|deformit(?:y|ies)|deformation|collapse)|"
        r"(?:vertebral(?: body)?|insufficiency|wedge|[tl]\d+) (?:fractures?|collapse|compression|deformit(?:y|ies)|height loss)|(?:loss of|reduced|decreased)(?: vertebral(?: body)?)? height|height loss|"
        r"compressed vertebra(?:e|l bod(?:y|ies))?|(?:fractures?|collapse|compression|wedging) of (?:the )?(?:[tl]\d+|(?:\w+ )?vertebra(?:l bod(?:y|ies)|e)?)|collapsed vertebra(?:e|l body)?|\b[tl]\d{1,2} (?:vertebral body )?is (?:\w+ly )?(?:compressed|collapsed|wedged)|(?:compressed|collapsed|wedged) (?:[tl]\d+|vertebra)"
    ),
}
"""Patterns over normalised lower-case text, tried together; the longest match at a place wins."""

ORGAN_NORMAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?:the )?heart (?:size )?(?:is |appears )?(?:normal|within normal limits|unremarkable|of normal size)(?: in size)?|(?:normal|unremarkable) (?:heart size|cardiac silhouette|size of the heart|heart)|"
     r"(?:the )?cardiac silhouette is (?:normal|not enlarged|within normal limits)|heart of normal size", ("cardiomegaly",)),
    (r"(?:the )?pericardium is (?:normal|unremarkable)|normal pericardium|no fluid around the heart", ("pericardial_effusion",)),
    (r"(?:the )?spleen (?:is |appears )?(?:normal|unremarkable|within normal limits|of normal size)(?: in size)?|(?:normal|unremarkable) (?:spleen|splenic size)|normal-sized spleen|splenic length is normal", ("splenomegaly",)),
    (r"aort(?:a|ic arch) (?:\w+ ){0,4}?(?:normal|unremarkable|within normal limits|regular)(?: (?:in|calib\w+|diameter|width|course)){0,3}|(?:normal|unremarkable) (?:calib(?:er|re)|diameter|width) of the (?:\w+ )?aorta|"
     r"(?:normal|unremarkable|normal-calib(?:er|re)) (?:thoracic |abdominal )?aorta|aorta of normal (?:calib(?:er|re)|width|diameter)|aortic (?:diameter|calib(?:er|re))s? (?:is|are) (?:normal|within normal limits)", ("aortic_dilatation",)),
    (r"lungs? (?:fields )?(?:are|is|remain|appear)? ?(?:otherwise )?clear|clear lungs|clear lung fields", ("consolidation", "ground_glass_opacity", "lung_nodule", "lung_mass", "atelectasis")),
    (r"pleural (?:spaces?|cavit(?:y|ies)|recesses) (?:is|are|remain|appear) (?:clear|free(?! of)|normal|unremarkable|dry)|(?:clear|dry|normal|unremarkable) pleural (?:spaces|cavities)|pleura (?:is )?(?:normal|unremarkable)", ("pleural_effusion", "pneumothorax")),
    (r"pleural (?:spaces?|cavit(?:y|ies)) (?:is|are) free of fluid|no fluid in the pleural (?:spaces?|cavit(?:y|ies))", ("pleural_effusion",)),
    (r"coronary arteries (?:are |appear )?(?:normal|unremarkable|free of calci\w+)", ("coronary_calcification",)),
    (r"(?:mediastinal|hilar|lymph) (?:lymph )?nodes (?:are |appear )?(?:all )?(?:normal|unremarkable|not enlarged|within normal limits|small)(?: in size)?|(?:normal-sized|normal|unremarkable) (?:mediastinal|hilar|lymph) (?:lymph )?nodes", ("lymphadenopathy",)),
    (r"(?:the )?liver (?:is |appears )?(?:normal|unremarkable|within normal limits)|(?:normal|unremarkable) liver(?! attenuation| density)", ("liver_lesion", "hepatic_steatosis")),
    (r"(?:liver|hepatic)(?: parenchymal)? (?:attenuation|density) (?:is |appears )?(?:normal|within normal limits|preserved)|normal (?:liver|hepatic) (?:attenuation|density)|liver is of normal (?:attenuation|density)|liver is (?:normal in|not reduced in) (?:attenuation|density)", ("hepatic_steatosis",)),
    (r"(?:the )?(?:both )?kidneys? (?:is |are |appear )?(?:both )?(?:normal|unremarkable|within normal limits)|(?:normal|unremarkable) kidneys", ("renal_cyst", "kidney_stone", "hydronephrosis")),
    (r"collecting systems (?:is |are )?(?:normal|unremarkable|not dilated|slender|undilated|decompressed)|undilated collecting systems", ("hydronephrosis",)),
    (r"vertebral (?:body )?heights? (?:is |are |appears? )?(?:well )?(?:normal|maintained|preserved|intact|unremarkable)|(?:normal|preserved|maintained) vertebral (?:body )?heights?|vertebra(?:e|l bodies) (?:are |appear )?(?:normal|intact|of normal height|unremarkable)(?: in height)?|(?:normal|intact) vertebra(?:e|l bodies)", ("vertebral_compression",)),
    (r"stomach (?:is |lies )?(?:entirely )?(?:normal in position|below the diaphragm|in (?:its )?normal position)|(?:esophageal|oesophageal) hiatus is (?:normal|not widened|unremarkable)", ("hiatal_hernia",)),
)
"""Ways to say that an organ is well, and what they rule out. A preceding negation or doubt turns them off or into doubt."""

ORGAN_BORDERLINE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?:heart|heart size|cardiac size|cardiac silhouette|size of the heart|cardiothoracic ratio)\b", ("cardiomegaly",)),
    (r"(?:(?<!below the )(?<!than the )spleen|splenic (?:size|length)|length of the spleen)\b", ("splenomegaly",)),
    (r"(?:aorta|aortic (?:arch|diameter|calib(?:er|re)))\b", ("aortic_dilatation",)),
    (r"(?:lymph nodes?|nodes)\b", ("lymphadenopathy",)),
    (r"(?:(?:liver|hepatic) (?:attenuation|density)|attenuation of the liver)\b", ("hepatic_steatosis",)),
    (r"(?:vertebral (?:body )?heights?|vertebral body)\b", ("vertebral_compression",)),
    (r"(?:collecting systems?|renal pelvis)\b", ("hydronephrosis",)),
)
"""Organs that a sentence may call borderline without naming the disease."""

ORGAN_UNSEEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\b(?:lungs|lung parenchyma|both lungs|thorax|chest)\b", ("lung_nodule", "lung_mass", "consolidation", "ground_glass_opacity", "emphysema", "atelectasis")),
    (r"\b(?:pleura|pleural spaces?|pleural cavities|thorax|chest)\b", ("pleural_effusion", "pneumothorax")),
    (r"\bheart size\b|\bsize of the heart\b", ("cardiomegaly",)),
    (r"\b(?:heart(?! size)(?<!size of the heart)|thorax|chest)\b", ("cardiomegaly", "pericardial_effusion", "coronary_calcification")),
    (r"\bpericardium\b", ("pericardial_effusion",)),
    (r"\bcoronary arteries\b", ("coronary_calcification",)),
    (r"\baorta\b", ("aortic_dilatation",)),
    (r"\b(?:mediastinum|thorax|chest)\b", ("lymphadenopathy", "hiatal_hernia")),
    (r"\b(?:mediastinal (?:lymph )?nodes|lymph nodes)\b", ("lymphadenopathy",)),
    (r"\b(?:esophageal|oesophageal) hiatus\b", ("hiatal_hernia",)),
    (r"\b(?:liver|upper abdomen|abdomen|abdominal organs)\b", ("liver_lesion", "hepatic_steatosis")),
    (r"\b(?:kidneys|upper abdomen|abdomen|abdominal organs)\b", ("renal_cyst", "kidney_stone", "hydronephrosis")),
    (r"\b(?:spleen|splenic size|upper abdomen|abdomen|abdominal organs)\b", ("splenomegaly",)),
    (r"\b(?:vertebrae|spine|vertebral column|vertebral bodies|bones)\b", ("vertebral_compression",)),
)
"""Organs that a sentence may call not covered, and the findings that are then not assessed."""

_PSEUDO = (
    r"no (?:significant |relevant |interval |appreciable |substantial )*(?:change|increase|decrease|growth|progression|enlargement of the known)(?: in| of)?|"
    r"not only|without (?:interval |significant )?change|unchanged|no further|no new|not necessarily|no longer than"
)
PSEUDO_NEGATION = re.compile(rf"\b(?:{_PSEUDO})\b")
"""Negations of something else than the finding that follows."""

_NOT_SEEN_WHY = (
    r"(?:not|in-?completely|incompletely|only partly|only partially|partly|partially|un)[ -]?(?:fully |completely |entirely |adequately )?"
    r"(?:covered|included|imaged|assessed|assessable|evaluated|evaluable|scanned|visuali[sz]ed on this limited|in the field of view|within the field of view)|"
    r"(?:cannot|can not|could not|can't) (?:be )?(?:reliably |fully |adequately )?(?:assessed|evaluated|judged|commented on|determined)|"
    r"(?:lies?|is|are|falls?|lay|were|was|being) (?:outside|beyond) (?:of )?(?:the )?(?:field of view|scan(?:ned)?(?: range| volume| region| area)?|imaged (?:range|volume|region)|coverage)|"
    r"(?:outside|beyond) (?:of )?(?:the )?(?:field of view|scan(?:ned)?(?: range| volume| region| area)?|imaged (?:range|volume|region)|coverage)|"
    r"(?:not|un)[ -]?(?:assessable|evaluable)|(?:is|are) (?:\w+ )?limited (?:by|because|due|owing)|no statement (?:is possible |can be made )?(?:on|about|regarding)|excluded from the scan|cut off by the scan"
)
CUES: tuple[tuple[State, str, str], ...] = (
    ("not_assessed", "pre", r"\b(?:not (?:assessed|assessable|evaluated|evaluable) for|(?:cannot|could not) be (?:assessed|evaluated|judged) for|no statement (?:is possible |can be made )?(?:on|about|regarding)|"
     r"no assessment of|limited assessment of|(?:unable|not possible) to (?:assess|comment on|evaluate|judge)(?: for)?|(?:cannot|could not) (?:assess|comment on|evaluate|judge))\b|^not (?:assessed|evaluated|assessable|covered|included):?"),
    ("not_assessed", "post", rf"\b(?:{_NOT_SEEN_WHY})"),
    ("uncertain", "pre", r"\b(?:equivocal|indeterminate|borderline|uncertain|suspicious|suspicion|concern|in doubt) (?:for|of|about)\b"),
    ("uncertain", "post", r"\b(?:can )?(?:neither )?be confirmed n?or (?:be )?(?:excluded|ruled out)"),
    ("uncertain", "post", r"\b(?:can ?not|can't|could not|not) (?:be )?(?:entirely |fully |completely |definitely |reliably |safely |confidently )*(?:excluded|ruled out|confirmed or excluded)|\b(?:is|are|remains?|seems?) (?:possible|probable|suspected|questionable|questioned|equivocal|uncertain|indeterminate|borderline|conceivable|not certain|likely|doubtful)|"
     r"\b(?:possible|suspected|questionable|equivocal|uncertain|indeterminate|borderline)$|\bnot (?:definite|certain)(?:ly)?\b|\bto be confirmed|: (?:possible|uncertain|equivocal|borderline|suspected|questionable|indeterminate)|\(\?\)|\?$"),
    ("uncertain", "pre", r"\b(?:possib(?:le|ly)|probabl[ey]|questionabl[ey]|suspected|suspicious for|suspicion of|suspicion for|concern(?:ing)? for|worrisome for|suggest(?:ion of|ive of|ing|s)|(?:may|might|could) (?:be|represent|reflect|correspond to|indicate)|equivocal(?: for)?|(?:findings|appearances?) (?:is |are )?(?:equivocal|indeterminate|borderline) for|"
     r"indeterminate for|uncertain(?: for)?|unclear whether|query|cannot (?:entirely |fully )?(?:exclude|rule out)|cannot be (?:excluded|certain)|could not exclude|borderline|likely|versus|vs|apparent|in doubt|perhaps|hint of|a suspicion of|doubtful)\b|^\?\s*"),
    ("absent", "post", r"\b(?:is|are|was|were)? ?(?:not|nowhere|never) (?:be )?(?:seen|identified|present|evident|found|detected|visible|demonstrated|visuali[sz]ed|appreciated|noted|apparent|shown|observed|recogni[sz]ed|made out)\b|\b(?:is|are|:) absent\b|\b(?:is|are|has been|have been|was) (?:excluded|ruled out)\b|: ?(?:no|none|nil|negative|absent|not present|not seen)\b|\bnone$|"
     r"\bnot (?:\w+ly )?(?:enlarged|dilated|increased|reduced|ectatic|widened)\b|\bcan be excluded\b|\b(?:has|have) (?:completely )?resolved\b|\babsent$"),
    ("absent", "pre", r"\b(?:no|without|negative for|free (?:of|from)|absence of|lack of|nor|neither|not|denies|rules? out|excludes|nil|lacks?|clear of|devoid of|none of)\b"),
)
"""(state, whether the cue stands before or after what it governs, pattern); earlier entries win where they overlap."""

SCOPE_ENDS = re.compile(
    r";|\.(?!\d)|\bbut\b|\bhowever\b|\balthough\b|\bthough\b|\bwhereas\b|\bwhile\b|\bexcept\b|\bapart from\b|\baside from\b|\bother than\b|\bbesides\b|\byet\b|\bthere (?:is|are)\b|\bwith (?:a|an|the|mild|moderate|severe|small|large|adjacent|associated)\b|"
    r"\bwhich\b|, (?:a|an|the) |\band (?:the|a|an) |\band there\b|\bso\b|\btherefore\b|\bbecause\b|\bdue to\b|\bsince\b|\bis (?:seen|noted|present)\b(?=.*\band\b)"
)
"""Where the scope of a negation or doubt that stands before its finding ends."""

GRADES: dict[str, Severity] = {
    **dict.fromkeys(("mild", "mildly", "small", "minimal", "minimally", "trace", "tiny", "minor", "slight", "slightly", "discrete", "subtle", "little", "minute", "shallow", "limited", "sparse"), "mild"),
    **dict.fromkeys(("moderate", "moderately", "moderate-sized", "medium", "medium-sized", "intermediate", "mid-sized", "considerable"), "moderate"),
    **dict.fromkeys(("severe", "severely", "large", "marked", "markedly", "extensive", "extensively", "massive", "massively", "advanced", "gross", "grossly", "heavy", "heavily", "pronounced", "voluminous", "widespread", "huge"), "severe"),
}
GRADE = re.compile(r"(?<![-\w])(" + "|".join(sorted(GRADES, key=len, reverse=True)) + r")(?![-\w])")

NUMBER_WORDS = {word: n for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
COUNT = re.compile(r"\b(single|solitary|" + "|".join(w for w in NUMBER_WORDS if w != "zero") + r"|\d{1,2})\b(?! ?(?:mm|cm|ml|hu|%|\.\d|x ))")

_LOBES = {
    ("right", "upper"): "lung_upper_lobe_right",
    ("right", "middle"): "lung_middle_lobe_right",
    ("right", "lower"): "lung_lower_lobe_right",
    ("left", "upper"): "lung_upper_lobe_left",
    ("left", "lower"): "lung_lower_lobe_left",
}
SITE_PATTERNS: tuple[tuple[str, str], ...] = (
    *((rf"\b{side}(?:-sided)? {part}(?:[ -]lobe|(?= and \w+ (?:lobes?|upper|lower|middle)|/)|[ -]lung (?:zone|field))|\b{part} lobe of the {side} lung|\b{part} {side} lobe", name) for (side, part), name in _LOBES.items()),
    (r"\brul\b", "lung_upper_lobe_right"),
    (r"\brml\b|\bmiddle lobe\b", "lung_middle_lobe_right"),
    (r"\brll\b|\bright lung base\b|\bright base\b|\bright basal\b", "lung_lower_lobe_right"),
    (r"\blul\b|\blingula\b|\blingular\b|\bleft upper division\b", "lung_upper_lobe_left"),
    (r"\blll\b|\bleft lung base\b|\bleft base\b|\bleft basal\b", "lung_lower_lobe_left"),
    (r"\bright (?:lung )?apex\b|\bright apical\b", "lung_upper_lobe_right"),
    (r"\bleft (?:lung )?apex\b|\bleft apical\b", "lung_upper_lobe_left"),
    (r"\bdescending (?:thoracic )?aorta\b|\bthoracic descending aorta\b", "descending_thoracic_aorta"),
    (r"\bascending (?:thoracic )?aorta\b|\bthoracic ascending aorta\b|\baortic root\b|\bascending aortic\b", "ascending_aorta"),
    (r"\baortic arch\b|\barch of the aorta\b", "aortic_arch"),
    (r"\babdominal aort(?:a|ic)\b|\binfrarenal aort(?:a|ic)\b|\baaa\b|\bsuprarenal aorta\b", "abdominal_aorta"),
)
VERTEBRA = re.compile(r"\b([tl])h?[ -]?(\d{1,2})\b|\b(\d{1,2})(?:st|nd|rd|th) (thoracic|lumbar) vertebra|\b(thoracic|lumbar) vertebra (\d{1,2})\b")

SIZE = re.compile(r"(\d+(?:[.,]\d+)?)(?: ?(?:mm|cm)?(?: ?[x×] ?| ?- ?| to )(\d+(?:[.,]\d+)?))?(?: ?(?:mm|cm)?(?: ?[x×] ?)(\d+(?:[.,]\d+)?))? ?-?(mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)\b")
PRIOR_SIZE = re.compile(r"\b(?:previously|prior|formerly|before|compared (?:with|to)|was|from)(?: measured| measuring| at| of)? (?:\d+(?:[.,]\d+)? ?(?:x ?)?)+ ?(?:mm|cm)")
PERCENT = re.compile(r"(\d+(?:[.,]\d+)?) ?(?:%|per ?cent)")
RATIO = re.compile(r"\b(?:cardiothoracic ratio|ctr|ratio)(?: is| of| =| at| measures|:)?(?: about| approximately| to)? ?(0[.,]\d+|\d\d ?%)")
HOUNSFIELD = re.compile(r"(-?\d+(?:[.,]\d+)?) ?(?:hu|hounsfield units?)\b")
